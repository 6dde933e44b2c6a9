"""Training of small networks to inspect: a classifier of images, SAEs, a decoder to images."""
