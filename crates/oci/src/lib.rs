//! Words of the Open Container Initiative: references, digests, manifests, image configs
