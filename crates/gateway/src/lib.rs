//! Services into nftables, names into DNS
