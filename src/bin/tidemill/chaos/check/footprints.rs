//! Whether processes that live through faults take no more of the machine than before.

use super::super::report::Report;
use super::books::{Books, Footprint};

/// How much more than before anything was broken a process may take at any time between faults, when jobs
/// may have piled up and connections be made anew.
const MORE_FILES: u64 = 16;
const MORE_KIB: u64 = 64 * 1024;

/// The same of a server, whose streams grow by files.
const MORE_FILES_OF_SERVER: u64 = 64;

pub(super) fn flat(books: &Books, report: &mut Report) {
    let first_fault = books.faults.iter().map(|fault| fault.from_us).min().unwrap_or(u64::MAX);
    for is_worker in [true, false] {
        let alike = books.footprints.iter().filter(|seen| seen.is_of_worker() == is_worker);
        let (before, after): (Vec<_>, Vec<_>) = alike.partition(|seen| seen.at_us < first_fault);
        for (name, what) in grown(&before, &after) {
            report.violated(format!("{name} holds on to what it took: {what}"));
        }
    }
}

/// Those that take too much, each once, by their most.
fn grown<'a>(before: &[&Footprint], after: &[&'a Footprint]) -> Vec<(&'a str, String)> {
    let Some(files) = before.iter().map(|seen| seen.files).max() else { return Vec::new() };
    let kib = before.iter().map(|seen| seen.rss_kib).max().unwrap_or_default();
    let mut grown: Vec<(&str, String)> = Vec::new();
    for seen in after {
        let is_worker = seen.is_of_worker();
        let more = if is_worker { MORE_FILES } else { MORE_FILES_OF_SERVER };
        // A server keeps what it is told in memory; of a worker nothing is to stay.
        let takes_memory = is_worker && seen.rss_kib > 2 * kib + MORE_KIB;
        if (seen.files > files + more || takes_memory)
            && !grown.iter().any(|(of, _)| *of == seen.of)
        {
            let Footprint { files: now, rss_kib, .. } = seen;
            let mib = |kib: u64| kib / 1024;
            let what = format!(
                "{now} files and {} MiB, before anything was broken {files} and {}",
                mib(*rss_kib),
                mib(kib)
            );
            grown.push((&seen.of, what));
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(of: &str, files: u64, mib: u64) -> Footprint {
        Footprint { at_us: 0, of: of.to_owned(), files, rss_kib: mib * 1024 }
    }

    #[test]
    fn what_takes_more_than_before_is_told_once() {
        let before = [seen("w1-1", 20, 30), seen("w2-1", 22, 28)];
        for (what, after, expected) in [
            ("the same", vec![seen("w1-1", 22, 30)], 0),
            ("a little more", vec![seen("w1-1", 38, 120)], 0),
            ("too many files", vec![seen("w1-1", 39, 30)], 1),
            ("too much memory", vec![seen("w2-2", 20, 125)], 1),
            ("twice the same", vec![seen("w1-1", 39, 30), seen("w1-1", 50, 30)], 1),
            ("both", vec![seen("w1-1", 39, 30), seen("w2-1", 39, 30)], 2),
            ("a server, whose files and memory grow", vec![seen("n1", 80, 500)], 0),
            ("a server with far too many files", vec![seen("n1", 87, 30)], 1),
        ] {
            let before: Vec<&Footprint> = before.iter().collect();
            let after: Vec<&Footprint> = after.iter().collect();
            let grown = grown(&before, &after);
            assert_eq!(grown.len(), expected, "{what}: {grown:?}");
            assert!(super::grown(&[], &after).is_empty(), "{what}: nothing to compare with");
        }
    }
}
