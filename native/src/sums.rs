//! Sums of decimals that are exact, by the rules of `workers.core.decimals`, to the byte.
//!
//! A price or a size means the shortest decimal that is read as its float64. A sum is an integer of 127 bits and a number
//! of decimals; where that has no room it goes on as a float64, to which what comes is added in floats, in log order.

use crate::json::Number;

pub const MOST_DECIMALS: u32 = 36;
const LIMIT: i128 = 1 << 126;
const IS_FLOAT: u8 = 255;
pub const DUMP_LEN: usize = 17;

/// Numbers below it are written with the digits of their shortest form, whoever wrote them.
const SHORTEST_BELOW: u64 = 1_000_000_000_000_000;

/// `mantissa / 10^decimals`; `None` in place of one whose integer has no room in 127 bits, whatever it is added to.
pub type Decimal = Option<(i128, u32)>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sum {
    Exact { mantissa: i128, decimals: u32 },
    Float(f64),
}

impl Default for Sum {
    fn default() -> Self {
        Self::Exact { mantissa: 0, decimals: 0 }
    }
}

/// A price or a size: a float and, where that is short, the decimal that it means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount {
    pub value: f64,
    /// Without zeros at its end, unless `decimals` is 0.
    mantissa: i64,
    /// -1 where the decimal is longer than this holds.
    decimals: i8,
}

impl Amount {
    #[inline(never)]
    pub fn of_float(value: f64) -> Self {
        match decimal_of_float(value) {
            Some((mantissa, decimals)) if mantissa.unsigned_abs() < u128::from(SHORTEST_BELOW) && decimals < 100 => {
                Self { value, mantissa: mantissa as i64, decimals: decimals as i8 }
            }
            _ => Self { value, mantissa: 0, decimals: -1 },
        }
    }

    #[inline(always)]
    pub fn of_number(number: &Number) -> Self {
        if number.decimals < 0 || number.mantissa >= SHORTEST_BELOW {
            return Self::of_float(number.value);
        }
        let (mut mantissa, mut decimals) = (number.mantissa as i64, number.decimals);
        while decimals > 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            decimals -= 1;
        }
        Self { value: number.value, mantissa: if number.negative { -mantissa } else { mantissa }, decimals }
    }

    #[inline(always)]
    fn decimal(&self) -> Decimal {
        if self.decimals < 0 {
            return decimal_of_float(self.value);
        }
        Some((i128::from(self.mantissa), self.decimals as u32))
    }
}

/// The shortest decimal that is read as this float64, which must be finite.
#[cold]
fn decimal_of_float(value: f64) -> Decimal {
    if value == value.trunc() && value.abs() < (1u64 << 53) as f64 {
        return Some((value as i128, 0));
    }
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value);
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let negative = whole.starts_with('-');
    let mut mantissa = 0i128;
    for digit in whole.bytes().chain(fraction.bytes()).filter(u8::is_ascii_digit) {
        mantissa = mantissa * 10 + i128::from(digit - b'0'); // 17 digits at the most
    }
    if negative {
        mantissa = -mantissa;
    }
    let decimals = fraction.len() as i32 - exponent.parse::<i32>().unwrap_or(0);
    if decimals >= 0 {
        return Some((mantissa, decimals as u32));
    }
    let scaled = mantissa.checked_mul(10i128.checked_pow(decimals.unsigned_abs())?)?;
    Some((scaled, 0))
}

impl Sum {
    #[inline]
    pub fn add(&mut self, amount: &Amount) {
        self.plus(amount.decimal(), amount.value);
    }

    /// Adds the product of two numbers, which is exact as well.
    #[inline]
    pub fn add_product(&mut self, left: &Amount, right: &Amount) {
        let product = match (left.decimal(), right.decimal()) {
            (Some((0, _)), _) | (_, Some((0, _))) => Some((0, 0)),
            (Some((left, left_decimals)), Some((right, right_decimals))) => {
                let decimals = left_decimals + right_decimals;
                match (i64::try_from(left), i64::try_from(right)) {
                    (Ok(left), Ok(right)) => Some((i128::from(left) * i128::from(right), decimals)),
                    _ => left.checked_mul(right).map(|mantissa| (mantissa, decimals)),
                }
            }
            _ => None,
        };
        self.plus(product, left.value * right.value);
    }

    /// Adds a float that has no decimal; the sum is one from there on.
    pub fn add_float(&mut self, value: f64) {
        *self = Sum::Float(self.value() + value);
    }

    /// Adds another sum; a float where one of them is.
    pub fn merge(&mut self, other: &Sum) {
        match *other {
            Sum::Float(value) => *self = Sum::Float(self.value() + value),
            Sum::Exact { mantissa, decimals } => self.plus(Some((mantissa, decimals)), other.value()),
        }
    }

    #[inline]
    fn plus(&mut self, decimal: Decimal, value: f64) {
        match *self {
            Sum::Float(sum) => *self = Sum::Float(sum + value),
            Sum::Exact { mantissa: ours, decimals: our_decimals } => match decimal {
                Some((0, _)) => {}
                Some((theirs, decimals)) if decimals == our_decimals && within(theirs) => {
                    match Some(ours + theirs).filter(|total| within(*total)) {
                        Some(mantissa) => *self = Sum::Exact { mantissa, decimals },
                        None => *self = Sum::Float(self.value() + value),
                    }
                }
                _ => *self = self.plus_scaled(decimal).unwrap_or_else(|| Sum::Float(self.value() + value)),
            },
        }
    }

    /// The exact sum, where it has room.
    fn plus_scaled(&self, decimal: Decimal) -> Option<Sum> {
        let Sum::Exact { mantissa: ours, decimals: our_decimals } = *self else { return None };
        let (theirs, decimals) = decimal?;
        let most = our_decimals.max(decimals);
        if most > MOST_DECIMALS {
            return None;
        }
        let ours = ours.checked_mul(10i128.pow(most - our_decimals))?;
        let theirs = theirs.checked_mul(10i128.pow(most - decimals))?;
        let total = ours.checked_add(theirs)?;
        (within(ours) && within(theirs) && within(total)).then_some(Sum::Exact { mantissa: total, decimals: most })
    }

    /// The nearest float64.
    pub fn value(&self) -> f64 {
        match *self {
            Sum::Float(value) => value,
            Sum::Exact { mantissa, decimals } => nearest(mantissa, decimals),
        }
    }

    pub fn dump(&self, out: &mut Vec<u8>) {
        match *self {
            Sum::Float(value) => {
                out.extend(value.to_le_bytes());
                out.extend(0i64.to_le_bytes());
                out.push(IS_FLOAT);
            }
            Sum::Exact { mantissa, decimals } => {
                out.extend(mantissa.to_le_bytes());
                out.push(decimals as u8);
            }
        }
    }

    /// The sum that `dump` wrote; `None` where it can't be one.
    pub fn load(data: &[u8; DUMP_LEN]) -> Option<Self> {
        let (words, decimals) = data.split_first_chunk::<16>()?;
        if decimals[0] == IS_FLOAT {
            return Some(Sum::Float(f64::from_le_bytes(*words.first_chunk()?)));
        }
        let mantissa = i128::from_le_bytes(*words);
        let decimals = u32::from(decimals[0]);
        (decimals <= MOST_DECIMALS && within(mantissa)).then_some(Sum::Exact { mantissa, decimals })
    }
}

#[inline(always)]
fn within(mantissa: i128) -> bool {
    (-LIMIT..LIMIT).contains(&mantissa)
}

fn nearest(mantissa: i128, decimals: u32) -> f64 {
    if mantissa.unsigned_abs() < 1 << 53 && decimals <= 22 {
        return mantissa as f64 / crate::json::POWERS_OF_TEN[decimals as usize]; // both exact: rounded once
    }
    let mut text = [0u8; 48];
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(mantissa).as_bytes();
    let end = digits.len();
    text[..end].copy_from_slice(digits);
    text[end..end + 2].copy_from_slice(b"e-");
    text[end + 2] = b'0' + (decimals / 10) as u8;
    text[end + 3] = b'0' + (decimals % 10) as u8;
    // Its own digits make a number, and a float64 reaches far beyond 127 bits.
    std::str::from_utf8(&text[..end + 4]).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// The volume-weighted average of prices from `low` to `high`, which it never leaves; `None` without volume, and where a
/// sum is beyond a float64.
pub fn average(notional: &Sum, volume: &Sum, low: f64, high: f64) -> Option<f64> {
    let (value, weight) = (notional.value(), volume.value());
    if weight == 0.0 || !value.is_finite() || !weight.is_finite() {
        return None;
    }
    let quotient = value / weight;
    // As Python's min and max: the first of equals stays, which tells 0.0 from -0.0.
    let at_least = if low > quotient { low } else { quotient };
    Some(if high < at_least { high } else { at_least })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Cursor;
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        Cursor::new(text.as_bytes()).number().unwrap()
    }

    #[test]
    fn a_tenth_and_two_tenths_are_three() {
        let mut sum = Sum::default();
        for text in ["0.1", "0.2"] {
            sum.add(&Amount::of_number(&number(text)));
        }
        assert_eq!(sum.value(), 0.3);
        assert_eq!(sum, Sum::Exact { mantissa: 3, decimals: 1 });
    }

    #[test]
    fn what_finds_no_room_goes_on_as_a_float() {
        for text in ["1e300", "1e-300", "1e40"] {
            let mut sum = Sum::default();
            let found = number(text);
            sum.add(&Amount::of_float(5.0));
            sum.add(&Amount::of_number(&found));
            assert_eq!(sum, Sum::Float(5.0 + found.value), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_float_say_the_same(whole in 0u64..1_000_000, fraction in "[0-9]{0,8}", negative in any::<bool>()) {
            let point = if fraction.is_empty() { "" } else { "." };
            let found = number(&format!("{}{whole}{point}{fraction}", if negative { "-" } else { "" }));
            prop_assert_eq!(Amount::of_number(&found).decimal(), decimal_of_float(found.value));
        }

        #[test]
        fn a_sum_comes_back_from_its_bytes(mantissa in -(1i128 << 126)..(1i128 << 126), decimals in 0u32..=36) {
            let sum = Sum::Exact { mantissa, decimals };
            let mut bytes = Vec::new();
            sum.dump(&mut bytes);
            prop_assert_eq!(Sum::load(bytes[..].try_into().unwrap()), Some(sum));
        }

        #[test]
        fn the_order_of_summands_does_not_show(values in proptest::collection::vec((0u64..1 << 50, 0u32..12), 1..20)) {
            let sum = |values: &mut dyn Iterator<Item = &(u64, u32)>| {
                let mut sum = Sum::default();
                values.for_each(|(mantissa, decimals)| sum.plus(Some((i128::from(*mantissa), *decimals)), 0.0));
                sum
            };
            prop_assert_eq!(sum(&mut values.iter()), sum(&mut values.iter().rev()));
        }
    }
}
