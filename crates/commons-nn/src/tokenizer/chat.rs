//! Conversations as text: a model's own Jinja template, rendered as the reference library does.

use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: Json,
    /// Further fields that templates may use, such as `tool_calls`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Json::String(content.into()),
            extra: Map::new(),
        }
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Ends the text where the assistant is to speak.
    pub add_generation_prompt: bool,
    /// Descriptions of tools, in the JSON form the model's template expects.
    pub tools: Option<Json>,
    /// Year, month, day for templates that state the date; the clock is never read here.
    pub date: Option<(u16, u8, u8)>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Map<String, Json>,
}

/// Special tokens as templates write them.
#[derive(Debug, Clone, Default)]
pub struct TokenNames {
    /// Begins a text.
    pub bos: String,
    /// Ends a text.
    pub eos: String,
    /// Fills short rows.
    pub pad: String,
}

/// Steps a template may take: far beyond honest use, and an end for a hostile one.
const FUEL: u64 = 50_000_000;

/// Renders `template` for `messages`.
///
/// # Errors
/// When the template is malformed, fails, runs without end or refuses the messages.
pub fn render(
    template: &str,
    messages: &[Message],
    tokens: &TokenNames,
    options: &Options,
) -> Result<String> {
    let mut context = options.extra.clone();
    let mut put = |key: &str, value: Json| context.insert(key.to_owned(), value);
    let list =
        serde_json::to_value(messages).map_err(|e| Error::invalid("messages", e.to_string()))?;
    put("messages", list);
    put(
        "add_generation_prompt",
        options.add_generation_prompt.into(),
    );
    put("bos_token", tokens.bos.clone().into());
    put("eos_token", tokens.eos.clone().into());
    put("pad_token", tokens.pad.clone().into());
    put("tools", options.tools.clone().unwrap_or(Json::Null));
    let context = Value::from(Serde(&context));
    environment(options.date)
        .and_then(|environment| environment.render_str(template, context))
        .map_err(|e| match e.detail() {
            Some(detail) => Error::invalid("chat template", format!("{}: {detail}", e.kind())),
            None => Error::invalid("chat template", e.to_string()),
        })
}

fn environment(date: Option<(u16, u8, u8)>) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax = environment
        .syntax()
        .to_builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python_method);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    if let Some(date) = date {
        environment.add_function("strftime_now", move |format: String| {
            format_date(&format, date)
        });
    }
    Ok(environment)
}

/// `json.dumps` of Python: `", "` and `": "` between items, non-ASCII characters kept.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = kwargs.get(ignored)?;
    }
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    dump(&json, indent, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn dump(json: &Json, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match json {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Json::Object(items) if !items.is_empty() => {
            out.push('{');
            for (i, (key, item)) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(": ");
                dump(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn format_date(
    format: &str,
    (year, month, day): (u16, u8, u8),
) -> Result<String, minijinja::Error> {
    let name = MONTHS
        .get(usize::from(month).wrapping_sub(1))
        .copied()
        .unwrap_or("");
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&format!("{year:04}")),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(name.get(..3).unwrap_or(name)),
            Some('%') => out.push('%'),
            other => {
                return Err(minijinja::Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: %{} is not supported", other.unwrap_or(' ')),
                ));
            }
        }
    }
    Ok(out)
}

/// Methods of Python's `str` and `dict` that templates call.
fn python_method(
    _: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    let answer = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, arguments)?,
        ValueKind::Map => map_method(value, method, arguments)?,
        _ => None,
    };
    answer.ok_or_else(|| {
        minijinja::Error::new(
            ErrorKind::UnknownMethod,
            format!("{} has no method named {method}", value.kind()),
        )
    })
}

fn string_method(
    text: &str,
    method: &str,
    arguments: &[Value],
) -> Result<Option<Value>, minijinja::Error> {
    let argument = |i: usize| arguments.get(i).and_then(|v| v.as_str());
    let needed = |i: usize| {
        argument(i).ok_or_else(|| {
            minijinja::Error::new(
                ErrorKind::MissingArgument,
                format!("str.{method} needs text"),
            )
        })
    };
    let trimmed = |left: bool, right: bool| {
        let matches = |c: char| match argument(0) {
            Some(set) => set.contains(c),
            None => c.is_whitespace(),
        };
        let text = if left {
            text.trim_start_matches(matches)
        } else {
            text
        };
        Value::from(if right {
            text.trim_end_matches(matches)
        } else {
            text
        })
    };
    Ok(Some(match method {
        "strip" => trimmed(true, true),
        "lstrip" => trimmed(true, false),
        "rstrip" => trimmed(false, true),
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => title(text).into(),
        "capitalize" => capitalize(text).into(),
        "startswith" => affix(arguments, |part| text.starts_with(part)).into(),
        "endswith" => affix(arguments, |part| text.ends_with(part)).into(),
        "replace" => text.replace(needed(0)?, needed(1)?).into(),
        "count" => text.matches(needed(0)?).count().into(),
        "find" => match text.find(needed(0)?) {
            Some(at) => text[..at].chars().count().into(),
            None => (-1).into(),
        },
        "isdigit" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        "splitlines" => text.lines().map(Value::from).collect::<Vec<_>>().into(),
        "split" => split(text, argument(0), arguments.get(1)).into(),
        "join" => {
            let items = arguments.first().map(Value::try_iter).transpose()?;
            let items: Vec<String> = items.into_iter().flatten().map(|v| v.to_string()).collect();
            items.join(text).into()
        }
        _ => return Ok(None),
    }))
}

fn split(text: &str, separator: Option<&str>, limit: Option<&Value>) -> Vec<Value> {
    let limit = limit
        .and_then(Value::as_usize)
        .map_or(usize::MAX, |n| n.saturating_add(1));
    match separator {
        Some(separator) => text.splitn(limit, separator).map(Value::from).collect(),
        None => text.split_whitespace().map(Value::from).collect(),
    }
}

/// `startswith` and `endswith` take one text or a tuple of them.
fn affix(arguments: &[Value], matches: impl Fn(&str) -> bool) -> bool {
    let Some(argument) = arguments.first() else {
        return false;
    };
    match argument.as_str() {
        Some(part) => matches(part),
        None => argument
            .try_iter()
            .is_ok_and(|mut parts| parts.any(|part| part.as_str().is_some_and(&matches))),
    }
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first
            .to_uppercase()
            .chain(chars.flat_map(char::to_lowercase))
            .collect(),
        None => String::new(),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn map_method(
    map: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Option<Value>, minijinja::Error> {
    let keys = || map.try_iter().map(|keys| keys.collect::<Vec<_>>());
    Ok(Some(match method {
        "keys" => keys()?.into(),
        "values" => keys()?
            .iter()
            .map(|k| map.get_item(k))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        "items" => keys()?
            .into_iter()
            .map(|k| Ok(Value::from(vec![k.clone(), map.get_item(&k)?])))
            .collect::<Result<Vec<_>, minijinja::Error>>()?
            .into(),
        "get" => {
            let key = arguments.first().cloned().unwrap_or_default();
            let found = map.get_item(&key)?;
            match (found.is_undefined(), arguments.get(1)) {
                (false, _) => found,
                (true, Some(default)) => default.clone(),
                (true, None) => Value::from(()),
            }
        }
        _ => return Ok(None),
    }))
}
