//! Keys and values of every BPF map.
#![no_std]
