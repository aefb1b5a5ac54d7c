//! A JSON document that a client sent: bounded before anything is built of it, then read once for all who need it.
//!
//! What readers read differently is no document here: a name that is repeated, a number of more digits than a double
//! has, a text that ends early for some (U+0000), bytes that are no UTF-8, half a surrogate.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How much may stand in one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Objects and lists within each other.
    pub depth: usize,
    /// Members and elements, at every depth together.
    pub values: usize,
}

/// Why there is no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDocument(pub &'static str);

/// In bytes: a fault deep within names its way by all names around it.
const LONGEST_NAME: usize = 256;

/// Of a whole number: as many as 64 bits with a sign hold.
const MOST_DIGITS: usize = 19;

/// Of a number with a point or an exponent: as many as a double is written with.
const MOST_DECIMAL_DIGITS: usize = 17;

const NO_JSON: NoDocument = NoDocument("The body is not JSON that every reader reads alike");
const TOO_DEEP: NoDocument = NoDocument("The body is nested too deeply");
const TOO_MANY: NoDocument = NoDocument("The body has too many values");
const TOO_PRECISE: NoDocument = NoDocument("A number in the body has too many digits");
const TOO_LONG: NoDocument = NoDocument("A name in the body is too long");
const REPEATED: NoDocument = NoDocument("A name in the body is repeated");
const NUL: NoDocument = NoDocument("A text in the body contains U+0000");

// === impl Bounds ===

impl Bounds {
    /// Looks over the text once, and allocates nothing. That it is JSON is for the reader to find out.
    pub fn check(self, text: &[u8]) -> Result<(), NoDocument> {
        self.look_over(text, behind_number)
    }

    /// The same, of a text whose numbers nobody here reads: they may have any number of digits.
    pub fn check_size(self, text: &[u8]) -> Result<(), NoDocument> {
        self.look_over(text, |_, at| Ok(at + 1))
    }

    /// `number`: the place behind what begins with a digit.
    fn look_over(
        self,
        text: &[u8],
        number: impl Fn(&[u8], usize) -> Result<usize, NoDocument>,
    ) -> Result<(), NoDocument> {
        let (mut depth, mut values) = (0, 1);
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            at += 1;
            match byte {
                b'"' => at = behind_string(text, at),
                b'{' | b'[' => {
                    depth += 1;
                    values += 1;
                }
                b'}' | b']' => depth -= usize::from(depth > 0),
                b',' => values += 1,
                b'0'..=b'9' => at = number(text, at - 1)?,
                _ => {}
            }
            if depth > self.depth {
                return Err(TOO_DEEP);
            }
            if values > self.values {
                return Err(TOO_MANY);
            }
        }
        Ok(())
    }
}

/// The place behind a string that begins before `at`.
fn behind_string(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = memchr::memchr2(b'"', b'\\', &text[at..]) {
        at += found + 1;
        if text[at - 1] == b'"' {
            return at;
        }
        at = (at + 1).min(text.len()); // what is escaped
    }
    text.len()
}

/// The place behind a number that begins at `at`.
fn behind_number(text: &[u8], at: usize) -> Result<usize, NoDocument> {
    let number = &text[at..];
    let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
    let length = number.iter().take_while(|b| is_part(b)).count();
    let number = &number[..length];
    let mantissa = number.split(|b| matches!(b, b'e' | b'E')).next();
    let mantissa = mantissa.unwrap_or_default();
    let zeros = |b: &&u8| matches!(b, b'0' | b'.');
    let digits = mantissa.iter().skip_while(zeros);
    let digits = digits.filter(|b| b.is_ascii_digit()).count();
    let is_whole = number.iter().all(u8::is_ascii_digit);
    let most = if is_whole {
        MOST_DIGITS
    } else {
        MOST_DECIMAL_DIGITS
    };
    match digits > most {
        true => Err(TOO_PRECISE),
        false => Ok(at + length),
    }
}

/// Reads a whole document.
///
/// # Errors
/// When it is no JSON (RFC 8259), is beyond its bounds, or readers could read it differently.
pub fn read(text: &[u8], bounds: Bounds) -> Result<Value, NoDocument> {
    bounds.check(text)?;
    let mut fault = None;
    let mut json = serde_json::Deserializer::from_slice(text);
    let read = Reader(&mut fault).deserialize(&mut json);
    read.and_then(|value| json.end().map(|()| value))
        .map_err(|_| fault.unwrap_or(NO_JSON))
}

/// Whether a text is JSON that every parser takes: whole texts of Unicode, numbers that a double reaches, and at most 128
/// levels. Nothing is built of it.
pub fn is_well_formed(text: &[u8]) -> bool {
    let mut json = serde_json::Deserializer::from_slice(text);
    Look.deserialize(&mut json)
        .and_then(|()| json.end())
        .is_ok()
}

/// Reads one value.
struct Reader<'f>(&'f mut Option<NoDocument>);

impl Reader<'_> {
    fn fail<E: Error>(&mut self, fault: NoDocument) -> E {
        *self.0 = Some(fault);
        E::custom("refused")
    }

    fn check_text<E: Error>(&mut self, text: &str) -> Result<(), E> {
        match memchr::memchr(0, text.as_bytes()) {
            Some(_) => Err(self.fail(NUL)),
            None => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        let number = Number::from_f64(number);
        number
            .map(Value::Number)
            .ok_or_else(|| E::custom("no number"))
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<Value, E> {
        self.check_text(text)?;
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element_seed(Reader(self.0))? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            if name.len() > LONGEST_NAME {
                return Err(self.fail(TOO_LONG));
            }
            self.check_text(&name)?;
            let value = object.next_value_seed(Reader(self.0))?;
            if members.insert(name, value).is_some() {
                return Err(self.fail(REPEATED));
            }
        }
        Ok(Value::Object(members))
    }
}

/// Looks at one value.
struct Look;

impl<'de> DeserializeSeed<'de> for Look {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Look)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while object.next_key_seed(Look)?.is_some() {
            object.next_value_seed(Look)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        depth: 4,
        values: 10,
    };

    fn read(text: &str) -> Result<Value, NoDocument> {
        super::read(text.as_bytes(), BOUNDS)
    }

    #[test]
    fn a_document_is_read_as_it_stands() {
        for text in [
            r#"{"a":[1,-2,0.5,1e3,true,null],"b":"x\ny\"z"}"#,
            r#""[[[[[[[[""#,
            r#""\\""#,
            "9223372036854775807",
            "-9223372036854775808",
            "0.30000000000000004",
            "0.00000000000000000000000001",
            " [ ] ",
            "[[[[]]]]",
        ] {
            let plain: Value = serde_json::from_str(text).unwrap();
            assert_eq!(read(text), Ok(plain), "{text}");
        }
    }

    #[test]
    fn what_is_beyond_its_bounds_is_refused_before_it_is_built() {
        assert_eq!(read("[[[[[]]]]]"), Err(TOO_DEEP));
        assert_eq!(read(&"[".repeat(1_000_000)), Err(TOO_DEEP));
        assert_eq!(read("[1,2,3,4,5,6,7,8,9,10]"), Err(TOO_MANY));
        assert_eq!(
            read(&format!("[{}", "{},".repeat(1_000_000))),
            Err(TOO_MANY)
        );
        let long = format!(r#"{{"{}":1}}"#, "x".repeat(257));
        assert_eq!(read(&long), Err(TOO_LONG));
    }

    #[test]
    fn numbers_that_nobody_reads_may_be_long() {
        let text = b"[100000000000000000000, 0.30000000000000000004]";
        assert_eq!(BOUNDS.check(text), Err(TOO_PRECISE));
        assert_eq!(BOUNDS.check_size(text), Ok(()));
        assert_eq!(BOUNDS.check_size(b"[[[[[]]]]]"), Err(TOO_DEEP));
    }

    #[test]
    fn what_some_parsers_refuse_is_not_well_formed() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for (text, is_good) in [
            (
                r#"{"a":[1,-2,0.5,1e3,true,null],"b":"\ud83c\udfab","a":1}"#,
                true,
            ),
            ("100000000000000000000", true),
            (&nested(127), true),
            (&nested(129), false),
            (r#""\ud800""#, false),
            ("1e999999", false),
            ("{} {}", false),
            ("", false),
        ] {
            assert_eq!(is_well_formed(text.as_bytes()), is_good, "{text}");
        }
        assert!(!is_well_formed(b"\"\xff\""));
    }

    #[test]
    fn what_readers_read_differently_is_refused() {
        for (text, fault) in [
            (r#"{"a":1,"a":1}"#, REPEATED),
            (r#"{"a":1,"\u0061":2}"#, REPEATED),
            (r#"{"b":{"a":1,"a":2}}"#, REPEATED),
            (r#"["\u0000"]"#, NUL),
            (r#"{"a\u0000":1}"#, NUL),
            ("18446744073709551616", TOO_PRECISE),
            ("19.990000000000000001", TOO_PRECISE),
            ("0.1000000000000000055511151231257827", TOO_PRECISE),
            ("1e999999", NO_JSON),
            ("-1e400", NO_JSON),
            ("NaN", NO_JSON),
            ("-Infinity", NO_JSON),
            ("01", NO_JSON),
            ("+1", NO_JSON),
            ("1.", NO_JSON),
            (r#""\ud800""#, NO_JSON),
            (r#""\udc00\ud800""#, NO_JSON),
            ("\u{feff}{}", NO_JSON),
            ("{} {}", NO_JSON),
            ("{}\0", NO_JSON),
            ("{\"a\":1,}", NO_JSON),
            ("{'a':1}", NO_JSON),
            ("[1 /* x */]", NO_JSON),
            ("\"\t\"", NO_JSON),
            ("\"", NO_JSON),
            ("\"\\", NO_JSON),
            ("", NO_JSON),
        ] {
            assert_eq!(read(text), Err(fault), "{text}");
        }
        assert_eq!(super::read(b"\"\xff\"", BOUNDS), Err(NO_JSON));
    }
}
