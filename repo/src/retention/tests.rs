use super::*;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A point as a test makes it.
#[derive(Clone, Debug)]
struct Made {
    time: Timestamp,
    tags: Vec<String>,
    is_protected: bool,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn on(day: Date) -> Timestamp {
    at(&format!("{day}T11-00-00Z"))
}

fn made(times: impl IntoIterator<Item = Timestamp>) -> Vec<Made> {
    times.into_iter().map(|time| Made { time, tags: Vec::new(), is_protected: false }).collect()
}

/// Ids rise with the place in the list.
fn candidates(points: &[Made]) -> Vec<Candidate<'_>> {
    let id = |n: usize| SnapshotId((n as u128).to_be_bytes());
    let points = points.iter().enumerate();
    points.map(|(n, p)| Candidate { id: id(n), time: p.time, tags: &p.tags, is_protected: p.is_protected }).collect()
}

/// The reasons of each point in words, at the end of time.
fn reasons(points: &[Made], rules: &Rules) -> Vec<String> {
    let verdicts = judge(&candidates(points), rules, at("9999-12-30T00-00-00Z"));
    verdicts.iter().map(|v| v.keep.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")).collect()
}

fn stay(points: &[Made], rules: &Rules) -> Vec<Timestamp> {
    let stays = reasons(points, rules).into_iter().map(|reasons| !reasons.is_empty());
    points.iter().zip(stays).filter(|(_, stays)| *stays).map(|(p, _)| p.time).collect()
}

fn days(first: Date, last: Date, step: i64) -> Vec<Made> {
    let span = jiff::Span::new().days(step);
    made(first.series(span).take_while(|day| *day <= last).map(on))
}

fn of(n: u32) -> Option<Count> {
    Some(Count::Of(n))
}

fn stretch(text: &str) -> Option<Stretch> {
    Some(text.parse().unwrap())
}

const fn day(year: i16, month: i8, day: i8) -> Date {
    Date::constant(year, month, day)
}

/// The first example of restic's manual: a backup each Sunday for twelve weeks.
#[test]
fn days_without_points_do_not_count() {
    let sundays = days(day(2019, 9, 1), day(2019, 11, 17), 7);
    let kept = stay(&sundays, &Rules { daily: of(4), ..Rules::default() });
    assert_eq!(kept, [day(2019, 10, 27), day(2019, 11, 3), day(2019, 11, 10), day(2019, 11, 17)].map(on));
}

/// The second: a backup each day for a hundred years.
#[test]
fn rules_share_points() {
    let daily = days(day(1970, 1, 1), day(2069, 11, 17), 1);
    let rules = Rules { daily: of(7), weekly: of(5), monthly: of(12), yearly: of(75), ..Rules::default() };
    let kept = stay(&daily, &rules);
    // 17 November 2069 is a Sunday, and ends a week. The last of 2068 ends both a year and the twelfth month.
    let weeks = [day(2069, 10, 20), day(2069, 10, 27), day(2069, 11, 3), day(2069, 11, 10)];
    let week = (11..=17).map(|n| day(2069, 11, n));
    let months = (1..=10).map(|n| day(2069, n, 1).last_of_month()).chain([day(2068, 12, 31)]);
    let years = (1995..2068).map(|n| day(n, 12, 31));
    let expected: BTreeSet<Timestamp> = week.chain(weeks).chain(months).chain(years).map(on).collect();
    assert_eq!(kept, expected.into_iter().collect::<Vec<_>>());
    assert_eq!(kept.len(), 7 + 4 + 11 + 73);
}

/// The third: the same by age, with irregular backups.
#[test]
fn within_counts_back_from_the_newest_point() {
    let weekly = days(day(2018, 1, 3), day(2019, 11, 20), 7);
    let rules = Rules {
        within_daily: stretch("7d"),
        within_weekly: stretch("1m"),
        within_monthly: stretch("1y"),
        within_yearly: stretch("75y"),
        ..Rules::default()
    };
    let mut months: Vec<Date> =
        [(2018, 12, 26), (2019, 1, 30), (2019, 2, 27), (2019, 3, 27), (2019, 4, 24), (2019, 5, 29)]
            .map(|(y, m, d)| day(y, m, d))
            .into();
    months.extend([day(2019, 6, 26), day(2019, 7, 31), day(2019, 8, 28), day(2019, 9, 25)]);
    let weeks = [day(2019, 10, 23), day(2019, 10, 30), day(2019, 11, 6), day(2019, 11, 13), day(2019, 11, 20)];
    // The oldest of all stays as the oldest of the yearly ones; November 2018 has one that is younger than a year.
    let expected: Vec<_> =
        [day(2018, 1, 3), day(2018, 11, 28)].into_iter().chain(months).chain(weeks).map(on).collect();
    assert_eq!(stay(&weekly, &rules), expected);
    assert_eq!(reasons(&weekly, &rules)[0], "oldest yearly within 75y");
    // Seven days before the newest is not younger than seven days.
    assert_eq!(stay(&weekly, &Rules { within: stretch("7d"), ..Rules::default() }).len(), 1);
    assert_eq!(stay(&weekly, &Rules { within: stretch("7d1h"), ..Rules::default() }).len(), 2);
}

#[test]
fn the_oldest_stays_while_there_is_count_left() {
    let points = made(["2020-05-01T08-00-00Z", "2020-05-01T09-00-00Z", "2020-05-02T08-00-00Z"].map(at));
    let daily = |n| reasons(&points, &Rules { daily: of(n), ..Rules::default() });
    assert_eq!(daily(0), ["", "", ""]);
    assert_eq!(daily(2), ["", "daily", "daily"]);
    assert_eq!(daily(3), ["oldest daily", "daily", "daily"]);
    let all = Rules { daily: Some(Count::All), last: of(2), ..Rules::default() };
    assert_eq!(reasons(&points, &all), ["oldest daily", "last, daily", "last, daily"]);
}

#[test]
fn weeks_begin_on_monday_and_cross_the_new_year() {
    // Thursday, Sunday and Monday; then a year whose last day is in the next one's first week.
    let times = ["2015-12-31T12-00-00Z", "2016-01-03T23-59-59Z", "2016-01-04T00-00-00Z", "2018-12-31T12-00-00Z"];
    let points = made(times.map(at).into_iter().chain([at("2019-01-06T12-00-00Z")]));
    let rules = Rules { weekly: of(3), ..Rules::default() };
    assert_eq!(reasons(&points, &rules), ["", "weekly", "weekly", "", "weekly"]);
}

#[test]
fn a_month_before_the_last_of_march_is_a_day_that_february_lacks() {
    for (newest, age, begin) in [
        ("2021-03-31T10-00-00Z", "1m", "2021-03-03T10-00-00Z"),
        ("2020-03-31T10-00-00Z", "1m", "2020-03-02T10-00-00Z"),
        ("2021-03-31T10-00-00Z", "1m3d11h", "2021-02-27T23-00-00Z"),
        ("2020-02-29T00-00-00Z", "1y", "2019-03-01T00-00-00Z"),
        ("2020-01-15T00-00-00Z", "2y14m1d", "2016-11-14T00-00-00Z"),
    ] {
        assert_eq!(stretch(age).unwrap().before(at(newest)), seconds(at(begin)), "{age} before {newest}");
    }
    for age in ["99999y", "4294967295y4294967295m4294967295d4294967295h"] {
        assert_eq!(stretch(age).unwrap().before(at("2020-01-01T00-00-00Z")), i64::MIN);
    }
}

#[test]
fn points_in_the_future_move_no_border_and_stay_within() {
    let points =
        made(["2020-01-01T00-00-00Z", "2020-01-09T00-00-00Z", "2020-01-10T00-00-00Z", "2099-01-01T00-00-00Z"].map(at));
    let rules = Rules { within: stretch("2d"), ..Rules::default() };
    let stays = |now| judge(&candidates(&points), &rules, at(now)).iter().map(Verdict::stays).collect::<Vec<_>>();
    assert_eq!(stays("2020-01-10T00-00-00Z"), [false, true, true, true]);
    assert_eq!(stays("2019-01-01T00-00-00Z"), [true; 4]);
    assert_eq!(stays("2099-01-01T00-00-00Z"), [false, false, false, true]);
}

#[test]
fn tags_and_protection_keep_without_counting() {
    let tags = |list: &[&str]| list.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    let mut points = made((1..=5).map(|n| on(day(2020, 1, n))));
    points[0].is_protected = true;
    points[1].tags = tags(&["a", "b"]);
    points[2].tags = tags(&["b"]);
    let with = |lists: &[&str]| Rules {
        last: of(1),
        tags: lists.iter().map(|list| list.parse().unwrap()).collect(),
        ..Rules::default()
    };
    assert_eq!(reasons(&points, &with(&["a,b"])), ["protected", "tags a,b", "", "", "last"]);
    assert_eq!(reasons(&points, &with(&["a", "b"])), ["protected", "tags a, tags b", "tags b", "", "last"]);
    assert_eq!(reasons(&points, &with(&[""])), ["protected, no tags", "", "", "no tags", "no tags, last"]);
    assert_eq!(reasons(&points, &Rules::default()), ["protected", "", "", "", ""]);
}

#[test]
fn what_people_type_is_taken_or_refused() {
    assert_eq!(
        ["7", "0", "unlimited", "-1"].map(|t| t.parse::<Count>().unwrap()),
        [Count::Of(7), Count::Of(0), Count::All, Count::All]
    );
    for bad in ["", "-2", "all", "1.5", "4294967296"] {
        assert!(bad.parse::<Count>().is_err(), "{bad}");
    }
    let expected = Stretch { years: 2, months: 5, days: 7, hours: 3 };
    for text in ["2y5m7d3h", "3h7d5m2y"] {
        assert_eq!(text.parse::<Stretch>().unwrap(), expected);
    }
    assert_eq!(expected.to_string(), "2y5m7d3h");
    for bad in ["", "0d", "1w", "7", "d", "1d1d", "-1d", "1d ", "4294967296d", "1ä"] {
        assert!(bad.parse::<Stretch>().is_err(), "{bad}");
    }
}

/// The word for the period that a point is in, by the calendar of another hand.
fn word(series: Series, point: &Candidate<'_>) -> String {
    let format = match series {
        Series::Last => return point.id.to_string(),
        Series::Hourly => "%Y-%m-%d %H",
        Series::Daily => "%Y-%m-%d",
        Series::Weekly => "%G-%V",
        Series::Monthly => "%Y-%m",
        Series::Yearly => "%Y",
    };
    jiff::Timestamp::from_second(seconds(point.time)).unwrap().to_zoned(TimeZone::UTC).strftime(format).to_string()
}

/// Steps back from `end` month by month, then day by day.
fn walk_back(stretch: &Stretch, end: Timestamp) -> i64 {
    let end = jiff::Timestamp::from_second(seconds(end)).unwrap().to_zoned(TimeZone::UTC);
    let (mut first, time) = (end.date().first_of_month(), end.time());
    for _ in 0..stretch.years * 12 + stretch.months {
        first = first.yesterday().unwrap().first_of_month();
    }
    let mut date = first;
    (1..end.day()).for_each(|_| date = date.tomorrow().unwrap());
    (0..stretch.days).for_each(|_| date = date.yesterday().unwrap());
    let moment = |time: Time| date.to_datetime(time).to_zoned(TimeZone::UTC).unwrap().timestamp().as_second();
    moment(time) - i64::from(stretch.hours) * 3600
}

/// What the rules say, point by point from their definition, by looking at all other points each time.
fn oracle(points: &[Candidate<'_>], rules: &Rules, now: Timestamp) -> Vec<Verdict> {
    let age = |p: &Candidate<'_>| (p.time, p.id);
    let newest = points.iter().map(|p| p.time).filter(|t| *t <= now).max();
    let is_within =
        |p: &Candidate<'_>, stretch: &Stretch| newest.is_none_or(|newest| seconds(p.time) > walk_back(stretch, newest));
    let verdict = |p: &Candidate<'_>| {
        let mut keep = Vec::new();
        if p.is_protected {
            keep.push(Reason::Protected);
        }
        for list in &rules.tags {
            let lacking = list.0.iter().filter(|tag| !p.tags.contains(tag)).count();
            let unwanted = if list.0.is_empty() { p.tags.len() } else { 0 };
            if lacking + unwanted == 0 {
                keep.push(Reason::Tags(list.clone()));
            }
        }
        if rules.within.is_some_and(|stretch| is_within(p, &stretch)) {
            keep.push(Reason::Within(rules.within.unwrap()));
        }
        let is_oldest = points.iter().all(|other| age(other) >= age(p));
        // Whether the point is the newest of its period, and how many periods have a newer one.
        let place = |series| {
            let newer: BTreeSet<_> =
                points.iter().filter(|other| age(other) > age(p)).map(|other| word(series, other)).collect();
            (!newer.contains(&word(series, p)), newer.len())
        };
        for (series, count) in rules.counted() {
            let (is_newest, before) = place(series);
            let has_room = match count {
                Count::All => true,
                Count::Of(n) => before < usize::try_from(n).unwrap(),
            };
            match (has_room, is_newest) {
                (true, true) => keep.push(Reason::Counted(series)),
                (true, false) if is_oldest => keep.push(Reason::Oldest(series)),
                _ => {}
            }
        }
        for (series, stretch) in rules.counted_within() {
            match (is_within(p, &stretch), place(series).0) {
                (true, true) => keep.push(Reason::CountedWithin(series, stretch)),
                (true, false) if is_oldest => keep.push(Reason::OldestWithin(series, stretch)),
                _ => {}
            }
        }
        Verdict { id: p.id, keep }
    };
    points.iter().map(verdict).collect()
}

fn any_points() -> impl Strategy<Value = Vec<Made>> {
    // Around a change of year; by steps of 20 minutes over days, of hours over months, of days over years.
    let step = prop_oneof![
        (0u64..300).prop_map(|n| n * 1200),
        (0u64..3000).prop_map(|n| n * 3600),
        (0u64..1500).prop_map(|n| n * 86_400)
    ];
    let time = step.prop_map(|after| Timestamp::from_seconds(1_450_000_000 + after).unwrap());
    let tags = proptest::sample::subsequence(vec!["a".to_owned(), "b".to_owned()], 0..=2);
    let point = (time, tags, proptest::bool::weighted(0.1));
    proptest::collection::vec(point.prop_map(|(time, tags, is_protected)| Made { time, tags, is_protected }), 0..40)
}

fn any_count() -> impl Strategy<Value = Option<Count>> {
    prop_oneof![3 => Just(None), 3 => (0u32..6).prop_map(|n| Some(Count::Of(n))), 1 => Just(Some(Count::All))]
}

fn any_stretch() -> impl Strategy<Value = Option<Stretch>> {
    let stretch = (0u32..3, 0u32..15, 0u32..40, 0u32..50);
    let stretch = stretch.prop_map(|(years, months, days, hours)| Stretch { years, months, days, hours });
    prop_oneof![2 => Just(None), 1 => stretch.prop_map(Some)]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let counts = (any_count(), any_count(), any_count(), any_count(), any_count(), any_count());
    let stretches = (any_stretch(), any_stretch(), any_stretch(), any_stretch(), any_stretch(), any_stretch());
    let tags = proptest::sample::subsequence(vec!["a", "b", "a,b", "c", ""], 0..=2);
    (counts, stretches, tags).prop_map(|(counts, stretches, tags)| {
        let (last, hourly, daily, weekly, monthly, yearly) = counts;
        let (within, within_hourly, within_daily, within_weekly, within_monthly, within_yearly) = stretches;
        let tags = tags.into_iter().map(|list| list.parse().unwrap()).collect();
        let base = Rules { last, hourly, daily, weekly, monthly, yearly, tags, ..Rules::default() };
        Rules { within, within_hourly, within_daily, within_weekly, within_monthly, within_yearly, ..base }
    })
}

fn any_now() -> impl Strategy<Value = Timestamp> {
    (1_440_000_000u64..1_600_000_000).prop_map(|n| Timestamp::from_seconds(n).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn judging_follows_the_definition(points in any_points(), rules in any_rules(), now in any_now()) {
        let points = candidates(&points);
        prop_assert_eq!(judge(&points, &rules, now), oracle(&points, &rules, now));
    }

    #[test]
    fn the_order_of_points_does_not_matter(points in any_points(), rules in any_rules(), now in any_now(), by in any::<u64>()) {
        let mut points = candidates(&points);
        let mut verdicts = judge(&points, &rules, now);
        points.sort_by_key(|p| (p.id.0[15] as u64 + 1).wrapping_mul(by | 1));
        let mut again = judge(&points, &rules, now);
        verdicts.sort_by_key(|v| v.id);
        again.sort_by_key(|v| v.id);
        prop_assert_eq!(verdicts, again);
    }

    #[test]
    fn what_stayed_stays_the_next_time(points in any_points(), rules in any_rules(), now in any_now()) {
        let points = candidates(&points);
        let verdicts = judge(&points, &rules, now);
        // What "within" counts back from may have gone by another rule; then there is nothing to repeat.
        let newest = points.iter().filter(|p| p.time <= now).max_by_key(|p| (p.time, p.id)).map(|p| p.id);
        prop_assume!(verdicts.iter().all(|v| v.stays() || Some(v.id) != newest));
        let kept: Vec<_> = points.iter().zip(&verdicts).filter(|(_, v)| v.stays()).map(|(p, _)| *p).collect();
        prop_assert!(judge(&kept, &rules, now).iter().all(Verdict::stays));
    }

    #[test]
    fn a_point_that_is_not_seen_makes_no_other_go(points in any_points(), rules in any_rules(), at in any::<prop::sample::Index>()) {
        let rules = Rules { within: None, within_hourly: None, within_daily: None, within_weekly: None, within_monthly: None, within_yearly: None, ..rules };
        let (points, now) = (candidates(&points), Timestamp::from_seconds(0).unwrap());
        prop_assume!(!points.is_empty());
        let unseen = at.index(points.len());
        let kept: BTreeSet<_> = judge(&points, &rules, now).into_iter().filter(Verdict::stays).map(|v| v.id).collect();
        let others: Vec<_> = points.iter().enumerate().filter(|(n, _)| *n != unseen).map(|(_, p)| *p).collect();
        let verdicts = judge(&others, &rules, now);
        prop_assert!(verdicts.iter().all(|v| v.stays() || !kept.contains(&v.id)));
    }
}
