"""The kinds of trials: networks on images, boosted trees, and any function of one's own."""
