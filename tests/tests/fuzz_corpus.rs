//! What fuzzing has found stays found: every input of the corpus goes through its function again.

use std::path::Path;

#[test]
fn every_input_of_the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in ipop_tests::fuzz::TARGETS {
        let folder = corpus.join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut inputs = 0;
        for file in files {
            let path = file.expect("a readable folder").path();
            println!("{}", path.display());
            target(&std::fs::read(&path).expect("a readable file"));
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty: run the fuzzer", folder.display());
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for folder in std::fs::read_dir(corpus).expect("the corpus") {
        let name = folder.expect("a readable folder").file_name();
        let known = ipop_tests::fuzz::TARGETS.iter().any(|(target, _)| name == *target);
        assert!(known, "{} has no function in TARGETS", name.display());
    }
}
