//! The harness that the tests of all rooms share: suites that run over any implementation of a seam.

pub mod contract;
