"""Training of small networks to look into: a classifier of images, SAEs, a decoder to images."""
