"""A small text-conditional diffusion model of emoji pictures: data, training and sampling."""
