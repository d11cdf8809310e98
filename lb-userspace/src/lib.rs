//! The library of xdp-lb.
