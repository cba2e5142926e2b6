//! Every planted bug must be found by a closed-form check, and none may be found in the model as it is.

use super::{checks::CHECKS, *};

fn catches(mutant: Option<Mutant>) -> Vec<&'static str> {
    let failed = CHECKS.iter().filter(|(_, check)| check(mutant).is_err());
    failed.map(|(name, _)| *name).collect()
}

#[test]
fn every_planted_bug_is_found_and_the_docs_say_by_which_check() {
    assert_eq!(catches(None), Vec::<&str>::new());
    let mut table = String::from("| planted bug | what it does | found by |\n|---|---|---|\n");
    for (mutant, what) in Mutant::ALL {
        let found = catches(Some(*mutant));
        assert!(!found.is_empty(), "no check finds {mutant:?}: {what}");
        let names: Vec<String> = found.iter().map(|name| name.replace('_', " ")).collect();
        table.push_str(&format!("| {mutant:?} | {what} | {} |\n", names.join("; ")));
    }
    println!("{table}");
    let docs = include_str!("../../../../docs/nand-model.md");
    assert!(docs.contains(&table), "docs/nand-model.md must contain this table:\n{table}");
}
