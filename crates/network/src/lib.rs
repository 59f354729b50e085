//! Links, addresses and nftables of one instance, over netlink
