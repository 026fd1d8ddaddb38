use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::*;

/// The tokens as short words with their places, or the error.
fn tokens(text: &[u8], options: Options) -> String {
    let mut reader = Reader::with_options(text, options);
    let mut out = String::new();
    loop {
        let word = match reader.next() {
            Ok(None) => return out.trim_end().to_owned(),
            Err(e) => return out + &e.to_string(),
            Ok(Some(Token::ObjectStart)) => "{".to_owned(),
            Ok(Some(Token::ObjectEnd)) => "}".to_owned(),
            Ok(Some(Token::ArrayStart)) => "[".to_owned(),
            Ok(Some(Token::ArrayEnd)) => "]".to_owned(),
            Ok(Some(Token::Key(key))) => format!("{}:", String::from_utf8_lossy(key.raw())),
            Ok(Some(Token::String(s))) => format!("'{}'", String::from_utf8_lossy(s.raw())),
            Ok(Some(Token::Number(n))) => n.text().to_owned(),
            Ok(Some(Token::NonFinite(n))) => n.to_string(),
            Ok(Some(Token::Bool(b))) => b.to_string(),
            Ok(Some(Token::Null)) => "null".to_owned(),
        };
        let Range { start, end } = reader.range();
        out += &format!("{word}@{start}-{end} ");
    }
}

#[track_caller]
fn check(text: &str, want: &str) {
    assert_eq!(tokens(text.as_bytes(), Options::default()), want, "{text}");
}

/// The document as a value, built from tokens; the last of equal keys wins, as in `serde_json`.
fn value(reader: &mut Reader<'_>) -> Result<Value, Error> {
    fn text(s: Str<'_>) -> String {
        s.decode(Invalid::Refuse).unwrap().into_owned()
    }
    fn of(token: Token<'_>, reader: &mut Reader<'_>) -> Result<Value, Error> {
        Ok(match token {
            Token::ObjectStart => {
                let mut object = serde_json::Map::new();
                while let Some(Token::Key(key)) = reader.next()? {
                    let member = value(reader)?;
                    object.insert(text(key), member);
                }
                Value::Object(object)
            }
            Token::ArrayStart => {
                let mut array = Vec::new();
                loop {
                    match reader.next()?.unwrap() {
                        Token::ArrayEnd => break Value::Array(array),
                        token => array.push(of(token, reader)?),
                    }
                }
            }
            Token::String(s) => Value::String(text(s)),
            Token::Number(n) => match (n.as_u64(), n.as_i64()) {
                (Some(n), _) => Value::from(n),
                // `serde_json` makes `-0` a fraction.
                (_, Some(n)) if n != 0 => Value::from(n),
                _ => Value::from(n.as_f64()),
            },
            Token::Bool(b) => Value::Bool(b),
            Token::Null => Value::Null,
            other => panic!("{other:?} where a value was due"),
        })
    }
    match reader.next()? {
        Some(token) => of(token, reader),
        None => panic!("no value"),
    }
}

/// Equal, but for the last bits of a fraction: `serde_json` trades them for speed.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(x), Value::Number(y)) if x.is_f64() => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            (x - y).abs() <= x.abs() * 1e-15
        }
        _ => a == b,
    }
}

#[test]
fn tokens_come_with_their_places() {
    check(
        r#" {"a" : [1, -2.5e+3,true ],"b\n":"x\"y" , "c":{}, "d":null}"#,
        "{@1-2 a:@2-5 [@8-9 1@9-10 -2.5e+3@12-19 true@20-24 ]@25-26 b\\n:@27-32 'x\\\"y'@33-39 c:@42-45 {@46-47 }@47-48 \
         d:@50-53 null@54-58 }@58-59",
    );
    check("7", "7@0-1");
    check("\"\"\r\n", "''@0-2");
}

#[test]
fn an_error_says_what_was_wrong_and_where() {
    for (text, want) in [
        ("", "unexpected end at byte 0"),
        (" \n", "unexpected end at byte 2"),
        ("{", "{@0-1 unexpected end at byte 1"),
        ("[1", "[@0-1 1@1-2 unexpected end at byte 2"),
        ("[1,]", "[@0-1 1@1-2 expected a value at byte 3"),
        ("[,", "[@0-1 expected a value at byte 1"),
        (
            "[1 2]",
            "[@0-1 1@1-2 expected a comma or the end of the array at byte 3",
        ),
        ("{,}", "{@0-1 expected a key at byte 1"),
        (r#"{"a":1,}"#, "{@0-1 a:@1-4 1@5-6 expected a key at byte 7"),
        ("{1:2}", "{@0-1 expected a key at byte 1"),
        (r#"{"a" 1}"#, "{@0-1 expected a colon at byte 5"),
        (
            r#"{"a":1 "b":2}"#,
            "{@0-1 a:@1-4 1@5-6 expected a comma or the end of the object at byte 7",
        ),
        (
            r#"{"a":1]"#,
            "{@0-1 a:@1-4 1@5-6 expected a comma or the end of the object at byte 6",
        ),
        (
            "{}{}",
            "{@0-1 }@1-2 more after the end of the value at byte 2",
        ),
        ("\"abc", "string without an end at byte 0"),
        ("\"abc\\", "string without an end at byte 0"),
        (
            "[\"a\nb\"]",
            "[@0-1 control character in a string at byte 3",
        ),
        (r#""0123456789\x""#, "invalid escape at byte 11"),
        (r#""\u12g4""#, "invalid \\u escape at byte 1"),
        (r#""\u12"#, "invalid \\u escape at byte 1"),
        ("01", "invalid number at byte 0"),
        ("-", "invalid number at byte 1"),
        ("-01", "invalid number at byte 1"),
        ("1.", "invalid number at byte 2"),
        ("1e+", "invalid number at byte 3"),
        ("+1", "expected a value at byte 0"),
        (".5", "expected a value at byte 0"),
        ("nul", "expected a value at byte 0"),
        ("NaN", "expected a value at byte 0"),
        ("-Infinity", "invalid number at byte 1"),
        ("1a", "1@0-1 more after the end of the value at byte 1"),
        ("// no", "expected a value at byte 0"),
        ("\u{feff}1", "expected a value at byte 0"),
    ] {
        check(text, want);
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused_or_left_to_the_consumer() {
    let text = b"[\"ab\xffcd\xe2\x82z\"]";
    assert_eq!(
        tokens(text, Options::default()),
        "[@0-1 invalid UTF-8 at byte 4"
    );
    let lenient = Options {
        check_utf8: false,
        ..Options::default()
    };
    let mut reader = Reader::with_options(text, lenient);
    reader.next().unwrap();
    let Some(Token::String(s)) = reader.next().unwrap() else {
        panic!("no string")
    };
    assert!(!s.is_ascii());
    assert_eq!(s.decode(Invalid::Refuse), None);
    assert_eq!(s.decode(Invalid::Replace).unwrap(), "ab\u{fffd}cd\u{fffd}z");
    assert_eq!(
        s.decode(Invalid::ReplaceBytes).unwrap(),
        "ab\u{fffd}cd\u{fffd}\u{fffd}z"
    );
    assert_eq!(&*s.decode_wtf8(), b"ab\xffcd\xe2\x82z");
}

#[test]
fn python_s_non_finite_literals_are_an_option() {
    let python = Options {
        non_finite: true,
        ..Options::default()
    };
    assert_eq!(
        tokens(b"[NaN,Infinity,-Infinity,-1]", python),
        "[@0-1 NaN@1-4 inf@5-13 -inf@14-23 -1@24-26 ]@26-27"
    );
    assert_eq!(tokens(b"nan", python), "expected a value at byte 0");
}

#[test]
fn depth_has_a_limit_that_is_an_error_and_not_a_crash() {
    for depth in [1, 2, 63, 64, 65, 127, 128, 129, 511, 512] {
        let nested = format!("{}{}", "[{\"a\":".repeat(depth / 2), "[".repeat(depth % 2));
        let closed = format!(
            "{nested}{}{}{}",
            if depth % 2 == 1 { "" } else { "0" },
            "]".repeat(depth % 2),
            "}]".repeat(depth / 2)
        );
        let mut reader = Reader::new(closed.as_bytes());
        let mut deepest = 0;
        while reader.next().unwrap().is_some() {
            deepest = deepest.max(reader.depth());
        }
        assert_eq!(deepest as usize, depth);
    }
    let deep = "[".repeat(100_000);
    let mut reader = Reader::new(deep.as_bytes());
    let error = loop {
        if let Err(e) = reader.next() {
            break e;
        }
    };
    assert_eq!((error.kind, error.at), (ErrorKind::TooDeep, 512));
    let all = Options {
        max_depth: 0,
        ..Options::default()
    };
    assert_eq!(tokens(b"1", all), "1@0-1");
    assert_eq!(tokens(b"[]", all), "nested too deeply at byte 0");
}

#[test]
fn a_value_can_be_skipped_and_its_text_kept() {
    let text = br#"{"a": [1,{"b":"]"}] , "c":"x" ,"d":-1.0}"#;
    let mut reader = Reader::new(text);
    reader.next().unwrap();
    let mut values = Vec::new();
    while let Some(Token::Key(_)) = reader.next().unwrap() {
        values.push(String::from_utf8_lossy(&text[reader.skip_value().unwrap()]).into_owned());
    }
    assert_eq!(values, [r#"[1,{"b":"]"}]"#, r#""x""#, "-1.0"]);
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn numbers_are_exact_whatever_their_spelling() {
    let number = |text: &'static str| match Reader::new(text.as_bytes()).next() {
        Ok(Some(Token::Number(n))) => n,
        other => panic!("{text}: {other:?}"),
    };
    for (text, want) in [
        ("8", Some(8)),
        ("8.0", Some(8)),
        ("8e0", Some(8)),
        ("80e-1", Some(8)),
        ("0.08e2", Some(8)),
        ("0.8E+1", Some(8)),
        ("-0", Some(0)),
        ("-0.0e9", Some(0)),
        ("0e99999999999999999999", Some(0)),
        ("0.0000000000000000000000000000000000001", None),
        ("1e-99999999999999999999", None),
        ("1e99999999999999999999", None),
        ("8.5", None),
        ("-8", None),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("1844674407370955161500e-2", Some(u64::MAX)),
        ("1e19", Some(10_000_000_000_000_000_000)),
        ("1e20", None),
    ] {
        assert_eq!(number(text).integral_u64(), want, "{text}");
    }
    assert_eq!(
        number("-9223372036854775808.0").integral_i64(),
        Some(i64::MIN)
    );
    assert_eq!(number("9223372036854775808").integral_i64(), None);
    assert_eq!(number("-9223372036854775809").integral_i64(), None);
    assert_eq!(number("8.0").as_u64(), None);
    assert!(!number("8.0").is_integer_literal() && number("-80").is_integer_literal());
    assert_eq!(number("123456789012345678901234567890").text().len(), 30);
    assert_eq!(number("1e400").as_f64(), f64::INFINITY);
}

#[test]
fn escapes_are_undone_and_lone_surrogates_follow_the_policy() {
    let s = |raw: &'static str| Str::from_raw(raw.as_bytes()).unwrap();
    assert_eq!(
        s(r#"\"\\\/\b\f\n\r\t\u0041\u00e9\ud83d\ude00z"#)
            .decode(Invalid::Refuse)
            .unwrap(),
        "\"\\/\u{8}\u{c}\n\r\tAé😀z"
    );
    for (raw, replaced, kept) in [
        (r"\ud800", "\u{fffd}", &b"\xed\xa0\x80"[..]),
        (r"\udfffx", "\u{fffd}x", b"\xed\xbf\xbfx"),
        (r"\ud800A", "\u{fffd}A", b"\xed\xa0\x80A"),
        (
            r"\ud800\ud83d\ude00",
            "\u{fffd}😀",
            b"\xed\xa0\x80\xf0\x9f\x98\x80",
        ),
    ] {
        assert_eq!(s(raw).decode(Invalid::Refuse), None);
        assert_eq!(s(raw).decode(Invalid::Replace).unwrap(), replaced);
        assert_eq!(&*s(raw).decode_wtf8(), kept);
        assert!(!s(raw).is(replaced));
    }
    assert!(s(r"kin\u0064").is("kind") && s("kind").is("kind"));
    assert!(!s(r"kin\u0064").is("kin") && !s(r"kin\u0064").is("kinds"));
    for raw in ["\"", "a\nb", "\\", "\\x", "\\u123"] {
        assert_eq!(Str::from_raw(raw.as_bytes()), None, "{raw:?}");
    }
}

/// A document, as text: all kinds of values, spelled in all ways.
fn document() -> impl Strategy<Value = String> {
    let string = || "\"([ !#-\\[\\]-~]|é|😀|\\\\[\"\\\\/bfnrt]|\\\\u00[0-9a-fA-F]{2}|\\\\ud83d\\\\ude0[0-9]){0,12}\"";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,18})",
        "-?(0|[1-9][0-9]{0,5})\\.[0-9]{1,5}([eE][+-]?[0-9]{1,2})?",
        string(),
    ];
    let space = "[ \t\n\r]{0,2}";
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..6), space)
                .prop_map(|(items, s)| format!("[{s}{}{s}]", items.join(&format!("{s},{s}")))),
            (prop::collection::vec((string(), inner), 0..6), space).prop_map(|(members, s)| {
                let members: Vec<String> = members
                    .into_iter()
                    .map(|(k, v)| format!("{k}{s}:{s}{v}"))
                    .collect();
                format!("{{{s}{}{s}}}", members.join(&format!("{s},{s}")))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn a_document_means_what_serde_json_says(text in document()) {
        let mut reader = Reader::new(text.as_bytes());
        let ours = value(&mut reader).unwrap();
        prop_assert_eq!(reader.next().unwrap(), None);
        prop_assert!(same(&ours, &serde_json::from_str(&text).unwrap()), "{}", text);
    }

    #[test]
    fn what_is_no_document_is_refused_where_serde_json_refuses(
        mut text in document().prop_map(String::into_bytes),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            prop::sample::select(b"\"\\{}[]:,0123e.-+u tfn\x1f\n\x80\xe9".to_vec()), any::<u8>(),
        ], 0..3u8), 1..4),
    ) {
        for (at, byte, edit) in edits {
            let at = at.index(text.len() + 1);
            match edit {
                0 => text.insert(at, byte),
                1 if at < text.len() => { text.remove(at); }
                _ => if let Some(b) = text.get_mut(at) { *b = byte },
            }
        }
        // `IgnoredAny` checks the grammar alone, as we do without `check_utf8`.
        let options = Options { check_utf8: false, ..Options::default() };
        let mut reader = Reader::with_options(&text, options);
        let ours = loop {
            match reader.next() {
                Ok(None) => break true,
                Ok(Some(_)) => {}
                Err(_) => break false,
            }
        };
        prop_assert_eq!(ours, serde_json::from_slice::<IgnoredAny>(&text).is_ok());
        let strict = { let mut reader = Reader::new(&text); reader.skip_value().is_ok() && reader.next().is_ok() };
        prop_assert_eq!(strict, ours && std::str::from_utf8(&text).is_ok());
    }

    #[test]
    fn text_comes_back_from_its_escaped_form(text in any::<String>()) {
        let mut raw = Vec::new();
        escape_into(&mut raw, &text);
        let s = Str::from_raw(&raw).unwrap();
        prop_assert_eq!(&*s.decode(Invalid::Refuse).unwrap(), text.as_str());
        prop_assert!(s.is(&text));
        prop_assert_eq!(&*s.decode_wtf8(), text.as_bytes());
    }

    #[test]
    fn an_integral_number_is_the_same_in_all_its_spellings(value in any::<u64>(), zeros in 0usize..25, point in 0usize..25) {
        let digits = format!("{value}{}", "0".repeat(zeros));
        let cut = digits.len().saturating_sub(point).max(1);
        let exponent = (digits.len() - cut) as i64 - zeros as i64;
        let text = if cut == digits.len() {
            format!("{digits}e{exponent}")
        } else {
            format!("{}.{}e{exponent}", &digits[..cut], &digits[cut..])
        };
        let Ok(Some(Token::Number(n))) = Reader::new(text.as_bytes()).next() else { panic!("{text}") };
        prop_assert_eq!(n.integral_u64(), Some(value), "{}", text);
    }
}
