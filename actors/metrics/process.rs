//! What the process costs, as Linux says it in /proc. The usual names: a dashboard for any program finds them.

use std::fs;

/// Nothing of what /proc does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_s: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: Option<u64>,
}

impl Process {
    pub(super) fn look() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let kib = |key| number_after(&status, key).map(|kib| kib * 1024);
        Self {
            cpu_s: cpu_s(&stat),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            // The folder that is being read is one of them.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| u64::try_from(fds.count()).unwrap_or(0)),
            max_fds: number_after(&limits, "Max open files"),
            threads: number_after(&status, "Threads:"),
        }
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time: fields 14 and 15 of proc(5), in hundredths of a second on every Linux that there is.
fn cpu_s(stat: &str) -> Option<f64> {
    // The second field is the program's name, in parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u32 = fields.next()?.parse::<u32>().ok()?.checked_add(fields.next()?.parse().ok()?)?;
    Some(f64::from(ticks) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(cpu_s(stat), Some(2.0));
        assert_eq!(number_after("VmRSS:\t  12 kB\nThreads:\t3\n", "Threads:"), Some(3));
        assert_eq!(cpu_s("nothing"), None);
    }

    #[test]
    fn this_process_is_there() {
        let process = Process::look();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000), "{process:?}");
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
        assert!(process.max_fds.is_some() && process.cpu_s.is_some() && process.threads.is_some(), "{process:?}");
    }
}
