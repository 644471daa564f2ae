//! One field of a cron pattern.

use std::fmt;

/// What a field counts, and within what.
#[derive(Debug)]
pub(super) struct Unit {
    name: &'static str,
    min: u8,
    max: u8,
    names: &'static [&'static str],
    /// The number of the first name.
    first_name: u8,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const fn unit(name: &'static str, min: u8, max: u8) -> Unit {
    Unit { name, min, max, names: &[], first_name: 0 }
}

pub(super) const SECOND: Unit = unit("second", 0, 59);
pub(super) const MINUTE: Unit = unit("minute", 0, 59);
pub(super) const HOUR: Unit = unit("hour", 0, 23);
pub(super) const DAY: Unit = unit("day of month", 1, 31);
pub(super) const MONTH: Unit = Unit { names: &MONTHS, first_name: 1, ..unit("month", 1, 12) };
/// 7 is Sunday once more; the broker knows only 0.
pub(super) const WEEKDAY: Unit = Unit { names: &DAYS, ..unit("day of week", 0, 7) };

/// The numbers of a field at which a pattern runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    bits: u64,
    /// Whether it restricts nothing, which decides how two kinds of days go together.
    is_star: bool,
    /// As the broker takes it.
    text: String,
}

impl Field {
    pub(super) fn parse(unit: &Unit, text: &str) -> Result<Self, String> {
        if let Some(letter) = text.chars().find(|letter| matches!(letter, 'L' | 'W' | '#'))
            && !is_made_of_names(unit, text)
        {
            return Err(format!(
                "nats-server knows no {letter}: say it in numbers, names, ranges and steps"
            ));
        }
        let mut field = Self { bits: 0, is_star: false, text: String::new() };
        for item in text.split(',') {
            field.add(unit, item)?;
        }
        if unit.max == WEEKDAY.max && field.has(7) {
            field.bits = field.bits & !(1 << 7) | 1;
            field.text = if field.is_star { "*".to_owned() } else { ranges(field.bits) };
        }
        Ok(field)
    }

    /// Adds one item of the list: `*`, `5`, `1-5`, each with `/step` or without.
    fn add(&mut self, unit: &Unit, item: &str) -> Result<(), String> {
        let name = unit.name;
        let (range, step) = match item.split_once('/') {
            None => (item, None),
            Some((range, step)) => match step.parse::<u8>() {
                Ok(step) if step > 0 => (range, Some(step)),
                _ => {
                    return Err(format!("step {step:?} of {name} {item:?} is no positive number"));
                }
            },
        };
        let is_star = matches!(range, "*" | "?");
        // Weekdays end with Saturday unless a 7 is spelled out.
        let last = if unit.max == WEEKDAY.max { 6 } else { unit.max };
        let (from, to, text) = match range.split_once('-') {
            _ if is_star => (unit.min, last, "*".to_owned()),
            None => {
                let from = unit.number(range)?;
                // `5/20` means from 5 to the end in steps.
                (from, if step.is_some() { last.max(from) } else { from }, from.to_string())
            }
            Some((from, to)) if !to.contains('-') => {
                let (from, to) = (unit.number(from)?, unit.number(to)?);
                if from > to {
                    return Err(format!(
                        "{name} {item:?} runs backwards: write it as two ranges with a comma"
                    ));
                }
                (from, to, format!("{from}-{to}"))
            }
            Some(_) => return Err(format!("{name} {item:?} has more than one hyphen")),
        };
        self.bits |= (from..=to).step_by(step.unwrap_or(1).into()).fold(0, |bits, n| bits | 1 << n);
        self.is_star |= is_star && step.unwrap_or(1) == 1;
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(&text);
        if let Some(step) = step {
            self.text.push_str(&format!("/{step}"));
        }
        Ok(())
    }

    pub(super) fn has(&self, number: u32) -> bool {
        number < 64 && self.bits & 1 << number != 0
    }

    pub(super) fn is_star(&self) -> bool {
        self.is_star
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether the letters of a field are those of names, in which an L or a W is nothing special.
fn is_made_of_names(unit: &Unit, text: &str) -> bool {
    !text.contains('#')
        && text
            .split(|letter: char| !letter.is_ascii_alphabetic())
            .filter(|word| !word.is_empty())
            .all(|word| unit.names.iter().any(|name| name.eq_ignore_ascii_case(word)))
}

/// The numbers of a set as ranges with commas between.
fn ranges(bits: u64) -> String {
    let mut parts = Vec::new();
    let mut number = 0;
    while number < 64 {
        let start = number;
        while number < 64 && bits & 1 << number != 0 {
            number += 1;
        }
        match number - start {
            0 => number += 1,
            1 => parts.push(start.to_string()),
            _ => parts.push(format!("{start}-{}", number - 1)),
        }
    }
    parts.join(",")
}

impl Unit {
    fn number(&self, text: &str) -> Result<u8, String> {
        let Self { name, min, max, .. } = self;
        if text.is_empty() {
            return Err(format!("an item of {name} is empty"));
        }
        if let Some(index) = self.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(self.first_name + u8::try_from(index).unwrap_or_default());
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(match self.names {
                [] => format!("{text:?} is no {name}: use {min}-{max}"),
                [first, second, ..] => {
                    format!("{text:?} is no {name}: use {min}-{max}, or {first}, {second}, …")
                }
                [_] => unreachable!("there are several names or none"),
            });
        }
        match text.parse::<u8>() {
            Ok(number) if (*min..=*max).contains(&number) => Ok(number),
            _ => Err(format!("{name} {text} is not within {min}-{max}")),
        }
    }
}
