"""How the features of a site are distributed over tokens and documents."""
