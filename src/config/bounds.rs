//! How large may a configuration be? As a file, and with its aliases written out: a few lines of anchors that name each
//! other stand for more values than any memory holds.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess};
use serde::de::{VariantAccess, Visitor};

/// Bytes of the file; and, with all aliases written out, its values and the bytes of their texts. A file without aliases
/// that keeps to the first keeps to the second.
const MOST: usize = 1 << 20;

/// What the process begins with: a pipe will do, and is waited for.
///
/// # Errors
/// When it cannot be read, or is too large.
pub fn read(path: &Path) -> Result<String, String> {
    text(File::open(path))
}

/// The same of what is read more than once, by a process that serves: it waits for nobody.
///
/// # Errors
/// When it is no file, cannot be read, or is too large.
pub fn read_again(path: &Path) -> Result<String, String> {
    text(open(path))
}

fn text(file: io::Result<File>) -> Result<String, String> {
    let mut text = String::new();
    // One byte more, to see that there is one: a device has no length, and may have no end.
    let read = file.and_then(|file| file.take(MOST as u64 + 1).read_to_string(&mut text));
    match read {
        Err(e) => Err(format!("cannot be read: {e}")),
        Ok(_) if text.len() > MOST => Err(format!("has more than {MOST} bytes")),
        Ok(_) => Ok(text),
    }
}

/// Nothing but a file, whatever stands in its place by the time that it is opened: to open a pipe would be to wait for who
/// writes it.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

/// What a file holds that a configuration names: keys and certificates. It is read more than once, and so it is neither a
/// pipe, which may never say anything, nor a device, which may never end.
///
/// # Errors
/// When it cannot be read, is no file, or is too large.
pub fn contents(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let file = open(path.as_ref())?;
    // At once in its place: a key leaves no pieces behind where the vector would have grown.
    let length = file.metadata()?.len().min(MOST as u64) as usize;
    let mut bytes = Vec::with_capacity(length + 1);
    file.take(MOST as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() {
        ..=MOST => Ok(bytes),
        _ => Err(io::Error::other("it is larger than 1 MiB")),
    }
}

/// # Errors
/// When it is no YAML, or stands for too much.
pub fn check(yaml: &str) -> Result<(), String> {
    let mut left = MOST;
    match Count(&mut left).deserialize(serde_yaml::Deserializer::from_str(yaml)) {
        Ok(()) => Ok(()),
        Err(_) if left == 0 => Err(format!(
            "stands for more than {MOST} values and bytes: it repeats too much by aliases (`*name`)"
        )),
        Err(e) => Err(format!("is not YAML: {e}")),
    }
}

/// Counts one value and all that is in it, and keeps none of it.
struct Count<'a>(&'a mut usize);

impl Count<'_> {
    fn take<E: Error>(self, cost: usize) -> Result<Self, E> {
        *self.0 = self.0.saturating_sub(cost);
        match *self.0 {
            0 => Err(E::custom("too large")),
            _ => Ok(self),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, yaml: D) -> Result<(), D::Error> {
        yaml.deserialize_any(self.take(1)?)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    /// An empty file.
    fn visit_none<E: Error>(self) -> Result<(), E> {
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

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.take(text.len()).map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Count(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut mapping: A) -> Result<(), A::Error> {
        while mapping.next_key_seed(Count(self.0))?.is_some() {
            mapping.next_value_seed(Count(self.0))?;
        }
        Ok(())
    }

    /// A value with a tag.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let ((), value) = tagged.variant_seed(Count(self.0))?;
        value.newtype_variant_seed(Count(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_may_repeat_a_little_and_not_without_end() {
        assert_eq!(check("a: &a { x: 1, y: !tag [b] }\nb: *a\nc: *a\n"), Ok(()));
        assert_eq!(check(""), Ok(()));

        let mut laughs = "l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
        for i in 1..9 {
            let names = vec![format!("*l{}", i - 1); 9].join(", ");
            laughs += &format!("l{i}: &l{i} [{names}]\n");
        }
        // 3,000 aliases of 3,000 values: less than what the library itself calls a repetition.
        let wide = format!(
            "a: &a [{}]\nb: [{}]\n",
            "x,".repeat(3_000),
            "*a,".repeat(3_000)
        );
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(9_000),
            "*a,".repeat(9_000)
        );
        for yaml in [laughs, wide, long] {
            let fault = check(&yaml).unwrap_err();
            assert!(
                fault.contains("aliases") || fault.contains("repetition"),
                "{fault}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(check(&deep).is_err());
        assert!(check("a: &a [*a]").is_err());
    }

    #[test]
    fn a_file_without_end_is_not_read_to_it() {
        let fault = read("/dev/zero".as_ref()).unwrap_err();
        assert_eq!(fault, "has more than 1048576 bytes");
        assert!(
            read("/nonexistent".as_ref())
                .unwrap_err()
                .contains("cannot be read")
        );
        let fault = contents("/dev/zero").unwrap_err();
        assert_eq!(fault.to_string(), "it is no file");
    }
}
