#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ipop_tests::fuzz::aead(data));
