//! Which points of a workload stay when rules are applied: the last so many, the newest of each hour, day, week, month and
//! year, what is young enough, what has a tag, what is protected.
//!
//! The rules mean what they mean in restic, down to the details: a rule counts only periods that have a point; periods are those
//! of the calendar (here in UTC; weeks begin on Monday, as in ISO 8601); while a rule has some count left at the oldest point it
//! keeps that too; "within" counts back from the newest point that is not in the future, to a moment that is itself left out.
//!
//! Not here: reading points, notes or the clock, and forgetting ([`crate::protection`]). What holds: this is a function of its
//! arguments, whatever order the points come in, equal times included (the higher id counts as the newer one); a protected point
//! always stays; that a point is not seen, because it is damaged or just being made, makes no other go by a rule that counts.

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::time::Timestamp;
use jiff::SignedDuration;
use jiff::civil::Date;
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const EPOCH: Date = Date::constant(1970, 1, 1);

/// What is kept. A point stays when any rule keeps it; without a rule none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// So many of the newest points.
    pub last: Option<Count>,
    /// The newest point of so many hours.
    pub hourly: Option<Count>,
    /// The newest point of so many days.
    pub daily: Option<Count>,
    /// The newest point of so many weeks.
    pub weekly: Option<Count>,
    /// The newest point of so many months.
    pub monthly: Option<Count>,
    /// The newest point of so many years.
    pub yearly: Option<Count>,
    /// Every point that is younger than this.
    pub within: Option<Stretch>,
    /// The newest point of each hour, among those that are younger than this.
    pub within_hourly: Option<Stretch>,
    /// The newest point of each day, among those that are younger than this.
    pub within_daily: Option<Stretch>,
    /// The newest point of each week, among those that are younger than this.
    pub within_weekly: Option<Stretch>,
    /// The newest point of each month, among those that are younger than this.
    pub within_monthly: Option<Stretch>,
    /// The newest point of each year, among those that are younger than this.
    pub within_yearly: Option<Stretch>,
    /// Every point that has all the tags of one of these.
    pub tags: Vec<TagList>,
}

/// How many points a rule keeps. Written as a number, or as `unlimited` or `-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As many as there are.
    All,
    /// So many at most.
    Of(u32),
}

/// A length of time by the calendar, written as in `2y5m7d3h`: years, months, days and hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Calendar years.
    pub years: u32,
    /// Calendar months.
    pub months: u32,
    /// Days of 24 hours.
    pub days: u32,
    /// Hours.
    pub hours: u32,
}

/// Tags that a point has to have all of, written with commas between them. An empty list is for points without tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagList(Vec<String>);

/// A point, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: SnapshotId,
    /// Its time.
    pub time: Timestamp,
    /// Its tags.
    pub tags: &'a [String],
    /// Whether it stays against every rule.
    pub is_protected: bool,
}

/// What the rules say of one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which point.
    pub id: SnapshotId,
    /// What keeps it. Nothing does: it goes.
    pub keep: Vec<Reason>,
}

impl Verdict {
    /// Whether the point stays.
    #[must_use]
    pub fn stays(&self) -> bool {
        !self.keep.is_empty()
    }
}

/// What keeps a point. Shown in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is protected.
    Protected,
    /// It has these tags.
    Tags(TagList),
    /// It is young enough.
    Within(Stretch),
    /// It is one of those that a rule counts.
    Counted(Series),
    /// It is the oldest of all, and the rule had some count left.
    Oldest(Series),
    /// It is the newest of its period, and young enough.
    CountedWithin(Series, Stretch),
    /// It is the oldest of all, and young enough.
    OldestWithin(Series, Stretch),
}

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Every point.
    Last,
    /// The newest of each hour.
    Hourly,
    /// The newest of each day.
    Daily,
    /// The newest of each week from Monday on.
    Weekly,
    /// The newest of each month.
    Monthly,
    /// The newest of each year.
    Yearly,
}

/// Applies `rules` to the points of one workload. The verdicts come in the order of `points`. `now` only tells which points are in
/// the future: "within" does not count back from those, and keeps them.
#[must_use]
pub fn judge(points: &[Candidate<'_>], rules: &Rules, now: Timestamp) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = points.iter().map(|p| Verdict { id: p.id, keep: Vec::new() }).collect();
    let mut newest_first: Vec<(Candidate<'_>, &mut Verdict)> = points.iter().copied().zip(&mut verdicts).collect();
    newest_first.sort_by_key(|(point, _)| Reverse((point.time, point.id)));
    let newest = newest_first.iter().map(|(point, _)| point.time).find(|time| *time <= now);
    // When all are in the future there is nothing to count back from, and all are within.
    let begin = |stretch: &Stretch| newest.map_or(i64::MIN, |newest| stretch.before(newest));

    for (point, verdict) in &mut newest_first {
        if point.is_protected {
            verdict.keep.push(Reason::Protected);
        }
        let tags = rules.tags.iter().filter(|list| list.matches(point.tags));
        verdict.keep.extend(tags.cloned().map(Reason::Tags));
        let within = rules.within.filter(|stretch| seconds(point.time) > begin(stretch));
        verdict.keep.extend(within.map(Reason::Within));
    }
    for (series, count) in rules.counted() {
        series.keep(&mut newest_first, count, i64::MIN, |is_oldest| match is_oldest {
            false => Reason::Counted(series),
            true => Reason::Oldest(series),
        });
    }
    for (series, stretch) in rules.counted_within() {
        series.keep(&mut newest_first, Count::All, begin(&stretch), |is_oldest| match is_oldest {
            false => Reason::CountedWithin(series, stretch),
            true => Reason::OldestWithin(series, stretch),
        });
    }
    verdicts
}

impl Rules {
    fn counted(&self) -> impl Iterator<Item = (Series, Count)> {
        let all = [
            (Series::Last, self.last),
            (Series::Hourly, self.hourly),
            (Series::Daily, self.daily),
            (Series::Weekly, self.weekly),
            (Series::Monthly, self.monthly),
            (Series::Yearly, self.yearly),
        ];
        all.into_iter().filter_map(|(series, count)| Some((series, count?)))
    }

    fn counted_within(&self) -> impl Iterator<Item = (Series, Stretch)> {
        let all = [
            (Series::Hourly, self.within_hourly),
            (Series::Daily, self.within_daily),
            (Series::Weekly, self.within_weekly),
            (Series::Monthly, self.within_monthly),
            (Series::Yearly, self.within_yearly),
        ];
        all.into_iter().filter_map(|(series, stretch)| Some((series, stretch?)))
    }
}

impl Series {
    /// Gives a reason to the newest point of each period, and to the oldest point of all, until `left` of them have one.
    /// Points up to `begin`, in seconds since 1970, are out of its reach.
    fn keep(
        self,
        newest_first: &mut [(Candidate<'_>, &mut Verdict)],
        mut left: Count,
        begin: i64,
        reason: impl Fn(bool) -> Reason,
    ) {
        let oldest = newest_first.len().saturating_sub(1);
        let mut last = None;
        for (n, (point, verdict)) in newest_first.iter_mut().enumerate() {
            if left == Count::Of(0) || seconds(point.time) <= begin {
                return;
            }
            let period = self.period(point.time);
            let is_new = period.is_none() || period != last;
            if is_new || n == oldest {
                verdict.keep.push(reason(!is_new));
                last = period;
                left = left.less_one();
            }
        }
    }

    /// When the period that `time` is in began, in seconds since 1970. `None`: every point has one of its own.
    fn period(self, time: Timestamp) -> Option<i64> {
        let at = seconds(time);
        match self {
            Series::Last => None,
            Series::Hourly => Some(at - at % HOUR),
            Series::Daily => Some(at - at % DAY),
            // 1970 began on a Thursday.
            Series::Weekly => Some(at - (at + 3 * DAY) % (7 * DAY)),
            Series::Monthly => Some(midnight(date(time).first_of_month())),
            Series::Yearly => Some(midnight(date(time).first_of_year())),
        }
    }
}

impl Count {
    fn less_one(self) -> Count {
        match self {
            Count::All => Count::All,
            Count::Of(n) => Count::Of(n.saturating_sub(1)),
        }
    }
}

impl TagList {
    /// Whether a point with these tags is meant.
    #[must_use]
    pub fn matches(&self, tags: &[String]) -> bool {
        match self.0.is_empty() {
            true => tags.is_empty(),
            false => self.0.iter().all(|tag| tags.contains(tag)),
        }
    }
}

impl Stretch {
    /// The moment that lies this far before `end`, as far as there are moments.
    #[must_use]
    pub fn back_from(&self, end: Timestamp) -> Timestamp {
        let seconds = u64::try_from(self.before(end)).unwrap_or(0);
        Timestamp::from_seconds(seconds).unwrap_or(end)
    }

    /// The moment that lies this far before `end`, in seconds since 1970. A day that its month does not have counts on into
    /// the next month: a month before 31 March is "31 February", which is 3 March.
    fn before(&self, end: Timestamp) -> i64 {
        let month = date(end).first_of_month();
        let months = i64::from(month.year()) * 12 + i64::from(month.month()) - 1;
        let months = months - i64::from(self.years) * 12 - i64::from(self.months);
        let (year, number) = (i16::try_from(months.div_euclid(12)), i8::try_from(months.rem_euclid(12) + 1));
        let Some(begin) = year.ok().zip(number.ok()).and_then(|(year, month)| Date::new(year, month, 1).ok()) else {
            // Before all of history.
            return i64::MIN;
        };
        let by_months = midnight(month) - midnight(begin);
        seconds(end) - by_months - i64::from(self.days) * DAY - i64::from(self.hours) * HOUR
    }
}

fn seconds(time: Timestamp) -> i64 {
    i64::try_from(time.seconds()).unwrap_or(i64::MAX)
}

/// The day in UTC.
fn date(time: Timestamp) -> Date {
    EPOCH.saturating_add(SignedDuration::from_secs(seconds(time)))
}

/// When a day begins, in seconds since 1970.
fn midnight(date: Date) -> i64 {
    date.duration_since(EPOCH).as_secs()
}

impl FromStr for Count {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "unlimited" | "-1" => Ok(Count::All),
            _ => text
                .parse()
                .map(Count::Of)
                .map_err(|_| Error::invalid(format!("'{text}' is no number, nor 'unlimited'"))),
        }
    }
}

impl FromStr for Stretch {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("'{text}' is no length of time like 2y5m7d3h (years, months, days, hours)"));
        let mut stretch = Stretch::default();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, unit) = rest.split_at_checked(digits).ok_or_else(wrong)?;
            let number = number.parse().map_err(|_| wrong())?;
            let (field, after) = match unit.split_at_checked(1).ok_or_else(wrong)? {
                ("y", after) => (&mut stretch.years, after),
                ("m", after) => (&mut stretch.months, after),
                ("d", after) => (&mut stretch.days, after),
                ("h", after) => (&mut stretch.hours, after),
                _ => return Err(wrong()),
            };
            if *field != 0 {
                return Err(wrong());
            }
            *field = number;
            rest = after;
        }
        if stretch == Stretch::default() {
            return Err(wrong());
        }
        Ok(stretch)
    }
}

impl FromStr for TagList {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(TagList(text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()))
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, unit) in [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for TagList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Series::Last => "last",
            Series::Hourly => "hourly",
            Series::Daily => "daily",
            Series::Weekly => "weekly",
            Series::Monthly => "monthly",
            Series::Yearly => "yearly",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Protected => f.write_str("protected"),
            Reason::Tags(list) if list.0.is_empty() => f.write_str("no tags"),
            Reason::Tags(list) => write!(f, "tags {list}"),
            Reason::Within(stretch) => write!(f, "within {stretch}"),
            Reason::Counted(series) => write!(f, "{series}"),
            Reason::Oldest(series) => write!(f, "oldest {series}"),
            Reason::CountedWithin(series, stretch) => write!(f, "{series} within {stretch}"),
            Reason::OldestWithin(series, stretch) => write!(f, "oldest {series} within {stretch}"),
        }
    }
}

#[cfg(test)]
mod tests;
