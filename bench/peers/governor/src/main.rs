//! governor, as bench/peers/peers.py drives it: for each line with a number it makes as many
//! decisions, and answers with the CPU time in ns and how many were allowed.
//!
//! The argument says of what: `direct` one limiter in hand, `coarse` the same with the kernel's
//! coarse clock, `keyed` a limiter for each key, in a concurrent map.

use std::io::{self, BufRead, Write};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference};
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter};

const KEY: &str = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";

fn clock_ns(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(unsafe { libc::clock_gettime(id, &mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[derive(Clone, Default, Debug)]
struct CoarseClock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CoarseTime(u64);

impl std::ops::Add<Nanos> for CoarseTime {
    type Output = CoarseTime;
    fn add(self, other: Nanos) -> CoarseTime {
        CoarseTime(self.0 + other.as_u64())
    }
}

impl Reference for CoarseTime {
    fn duration_since(&self, earlier: Self) -> Nanos {
        Nanos::from(self.0.saturating_sub(earlier.0))
    }
    fn saturating_sub(&self, duration: Nanos) -> Self {
        CoarseTime(self.0.saturating_sub(duration.as_u64()))
    }
}

impl Clock for CoarseClock {
    type Instant = CoarseTime;
    fn now(&self) -> CoarseTime {
        CoarseTime(clock_ns(libc::CLOCK_MONOTONIC_COARSE))
    }
}

/// `check` says whether one decision allows.
fn serve(mut check: impl FnMut() -> bool) {
    for line in io::stdin().lock().lines() {
        let decisions: u64 = line.expect("a line").trim().parse().expect("a number");
        let begin = clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
        let allowed = (0..decisions).filter(|_| check()).count();
        println!("{} {}", clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) - begin, allowed);
        io::stdout().flush().expect("a reader");
    }
}

fn main() {
    let burst = NonZeroU32::new(1 << 30).expect("not zero");
    let quota = Quota::with_period(Duration::from_nanos(1)).expect("not zero").allow_burst(burst);
    match std::env::args().nth(1).as_deref() {
        Some("direct") => {
            let limiter = RateLimiter::direct(quota);
            serve(|| limiter.check().is_ok());
        }
        Some("coarse") => {
            let limiter = RateLimiter::direct_with_clock(quota, CoarseClock);
            serve(|| limiter.check().is_ok());
        }
        Some("keyed") => {
            let limiter = RateLimiter::<String, _, DefaultClock>::dashmap(quota);
            let key = KEY.to_string();
            serve(|| limiter.check_key(&key).is_ok());
        }
        _ => panic!("one of: direct, coarse, keyed"),
    }
}
