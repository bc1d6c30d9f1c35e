"""The GAN loop: from scratch or fine-tuning, under `accelerate launch -m training.train`."""
