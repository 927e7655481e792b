//! One gateway whose limiter counts in its own memory and tells Redis in batches (limitador's cached
//! Redis storage), as bench/peers/hosts.py drives it:
//!
//!     sluice-peer-batched REDIS_URL FLUSH_MS LIMIT_PER_S START_NS TIMETABLE
//!
//! TIMETABLE is a file of seconds after START_NS (CLOCK_MONOTONIC), one a line: at each it asks once.
//! Prints the instants of those that were allowed, in ns of that clock, one a line.

use std::collections::HashMap;
use std::time::Duration;

use limitador::limit::{Limit, Namespace};
use limitador::storage::redis::CachedRedisStorageBuilder;
use limitador::AsyncRateLimiter;

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    assert_eq!(words.len(), 6, "REDIS_URL FLUSH_MS LIMIT_PER_S START_NS TIMETABLE");
    let number = |i: usize| words[i].parse::<u64>().expect("a number");
    let (flush_ms, limit, start_ns) = (number(2), number(3), number(4));
    let instants: Vec<u64> = std::fs::read_to_string(&words[5])
        .expect("the timetable")
        .lines()
        .map(|line| start_ns + (line.parse::<f64>().expect("seconds") * 1e9) as u64)
        .collect();
    // One thread asks; another tells Redis.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let allowed = runtime.block_on(ask(&words[1], flush_ms, limit as i64, &instants));
    for instant in allowed {
        println!("{instant}");
    }
    // Its connections have tasks that do not end by themselves.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

async fn ask(url: &str, flush_ms: u64, limit: i64, instants: &[u64]) -> Vec<u64> {
    let storage = CachedRedisStorageBuilder::new(url)
        .flushing_period(Duration::from_millis(flush_ms))
        .build()
        .await
        .expect("Redis");
    let limiter = AsyncRateLimiter::new_with_storage(Box::new(storage));
    limiter.add_limit(Limit::new("api", limit, 1, [] as [&str; 0], ["user"]));
    let namespace = Namespace::from("api");
    let values = HashMap::from([("user".to_string(), "acme".to_string())]);
    let mut allowed = Vec::new();
    for due_ns in instants {
        let wait_ns = due_ns.saturating_sub(now_ns());
        if wait_ns > 0 {
            std::thread::sleep(Duration::from_nanos(wait_ns));
        }
        let result = limiter
            .check_rate_limited_and_update(&namespace, &values, 1, false)
            .await
            .expect("a decision");
        if !result.limited {
            allowed.push(now_ns());
        }
    }
    allowed
}
