//! Makes a line of a service's output safe to show on a terminal.
//!
//! Whatever a service writes must not move the cursor, set the title, clear the screen, answer queries or change the
//! keyboard of the terminal that shows it beside other services' lines. Colours may stay. Pure and total: every input
//! has a result, the result is valid UTF-8 without control characters but TAB and those of colours, and making it safe
//! again changes nothing.
//!
//! What this module does not do: split lines, or touch what is in the store.

/// What becomes of colours and other text attributes (SGR sequences).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// They stay, and are reset at the end of the line if the service does not.
    Keep,
    /// They are taken out, for output that is no terminal.
    Strip,
}

/// The longest colour sequence that is kept, in bytes of parameters. Longer ones are taken out.
const PARAMETERS_MAX: usize = 64;
const ESCAPE: char = '\u{1b}';
const BELL: char = '\u{07}';

/// Appends `line`, made safe, to `out`.
///
/// `line` is one line without its newline. What a carriage return would overwrite is left out, so that of a progress
/// bar the last state is shown. Bytes that are not UTF-8 become U+FFFD. A sequence that is not complete at the end of the
/// line is dropped: a service cannot swallow the next line.
pub fn sanitize(line: &[u8], colour: Colour, out: &mut String) {
    // Nearly every line is plain, and this is many times faster.
    if let (true, Ok(plain)) = (is_plain(line), std::str::from_utf8(line)) {
        return out.push_str(plain);
    }
    let mut machine = Machine { state: State::Text, colour, parameters: String::new(), is_coloured: false };
    for chunk in after_last_return(line).utf8_chunks() {
        for character in chunk.valid().chars() {
            machine.step(character, out);
        }
        if !chunk.invalid().is_empty() {
            machine.step(char::REPLACEMENT_CHARACTER, out);
        }
    }
    if machine.is_coloured {
        out.push_str("\u{1b}[0m");
    }
}

/// Says whether every byte is a printable character of ASCII or TAB.
fn is_plain(line: &[u8]) -> bool {
    // Without a way out in the middle, the compiler looks at many bytes at once.
    line.iter().fold(true, |is_plain, byte| is_plain & (matches!(byte, b' '..=b'~') | (*byte == b'\t')))
}

/// Returns what is to be seen of a line with carriage returns: what follows the last one that something follows.
fn after_last_return(line: &[u8]) -> &[u8] {
    let mut line = line;
    while let [rest @ .., b'\r' | b'\n'] = line {
        line = rest;
    }
    memchr::memrchr(b'\r', line).map_or(line, |at| &line[at + 1..])
}

/// Where in a control sequence we are (ECMA-48; the shape follows vt100.net's parser of DEC terminals).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// After ESC and an intermediate character.
    EscapeRest,
    /// In the parameters of a control sequence that may be a colour.
    Parameters,
    /// In a control sequence that is none.
    OtherSequence,
    /// In a title, a device control string or another one that ends with BEL or ST.
    ControlString,
    /// After an ESC in such a string.
    ControlStringEscape,
}

struct Machine {
    state: State,
    colour: Colour,
    parameters: String,
    is_coloured: bool,
}

impl Machine {
    fn step(&mut self, character: char, out: &mut String) {
        self.state = match (self.state, character) {
            // The 8-bit forms are two-character sequences written as one.
            (_, '\u{80}'..='\u{9f}') => self.introduce(char::from(character as u8 - 0x40)),
            (State::ControlString, ESCAPE) => State::ControlStringEscape,
            (State::ControlString, BELL) => State::Text,
            (State::ControlString, _) => State::ControlString,
            (State::ControlStringEscape, '\\') => State::Text,
            (_, ESCAPE) => State::Escape,
            // A terminal acts on control characters inside of a sequence and goes on with it.
            (state, '\0'..='\u{1f}' | '\u{7f}') => {
                if state == State::Text && character == '\t' {
                    out.push(character);
                }
                state
            }
            (State::Text, _) => {
                out.push(character);
                State::Text
            }
            (State::Escape | State::ControlStringEscape, _) => self.introduce(character),
            (State::EscapeRest, ' '..='/') => State::EscapeRest,
            (State::EscapeRest, _) => Self::after(character, out),
            (State::Parameters, '0'..='9' | ';' | ':') if self.parameters.len() < PARAMETERS_MAX => {
                self.parameters.push(character);
                State::Parameters
            }
            (State::Parameters, 'm') => {
                self.attributes(out);
                State::Text
            }
            (State::Parameters | State::OtherSequence, ' '..='?') => State::OtherSequence,
            (State::Parameters | State::OtherSequence, _) => Self::after(character, out),
        };
    }

    /// Chooses by the character after ESC what kind of sequence begins.
    fn introduce(&mut self, character: char) -> State {
        match character {
            '[' => {
                self.parameters.clear();
                State::Parameters
            }
            ']' | 'P' | 'X' | '^' | '_' => State::ControlString,
            ' '..='/' => State::EscapeRest,
            _ => State::Text,
        }
    }

    /// Ends a sequence: its last character belongs to it if it is one that can, and is text otherwise.
    fn after(character: char, out: &mut String) -> State {
        if !character.is_ascii() {
            out.push(character);
        }
        State::Text
    }

    fn attributes(&mut self, out: &mut String) {
        if self.colour == Colour::Keep {
            out.push_str("\u{1b}[");
            out.push_str(&self.parameters);
            out.push('m');
            self.is_coloured = self.parameters.chars().any(|c| c != '0');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept(line: &[u8]) -> String {
        let mut out = String::new();
        sanitize(line, Colour::Keep, &mut out);
        out
    }

    #[test]
    fn what_is_shown_of_what() {
        let table: &[(&[u8], &str)] = &[
            (b"plain\ttext", "plain\ttext"),
            ("grüße 🦀".as_bytes(), "grüße 🦀"),
            (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            (b"\x1b[1;38:2::1:2:3mred", "\x1b[1;38:2::1:2:3mred\x1b[0m"),
            (b"\x1b[38;5;0mblack on black?", "\x1b[38;5;0mblack on black?\x1b[0m"),
            (b"\x1b[31mred\x1b[m", "\x1b[31mred\x1b[m"),
            (b"\x1b]0;title\x07after", "after"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\!", "link!"),
            (b"\x1b]52;c;aGk=\x1b\\clipboard", "clipboard"),
            (b"\x1bP1;2|device\x1b\\text", "text"),
            (b"\x1b[2J\x1b[Hcleared\x1b[1A\x1b[K", "cleared"),
            (b"\x1b[?1049h\x1b[>4;1mkeys\x1b[?25l", "keys"),
            (b"\x1b[3 qcursor\x1b[!preset", "cursorreset"),
            (b"\x1bcreset\x1b(0line\x1b7\x1b8", "resetline"),
            (b"\x1b]0;never ended", ""),
            (b"\x1b[31", ""),
            (b"end\x1b", "end"),
            ("c1: \u{9b}31mred\u{9d}0;title\u{9c}.\u{85}".as_bytes(), "c1: \x1b[31mred.\x1b[0m"),
            (b"bell\x07 back\x08 null\0 del\x7f", "bell back null del"),
            (b"10%\r20%\r100%", "100%"),
            (b"10%\r20%\r", "20%"),
            (b"windows\r\n", "windows"),
            (b"\xff\xfe binary \xc3", "\u{fffd}\u{fffd} binary \u{fffd}"),
            (b"\x1b[3\xff1m", "\u{fffd}1m"),
            (b"\x1b]0;a\x1b[31mstill red", "\x1b[31mstill red\x1b[0m"),
            (b"a\x1b\x1b[31mb", "a\x1b[31mb\x1b[0m"),
        ];
        for (line, shown) in table {
            assert_eq!(kept(line), *shown, "of {:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn colours_go_when_there_is_no_terminal() {
        let mut out = String::from("before ");
        sanitize(b"\x1b[31mred\x1b[0m and \x1b[1mbold", Colour::Strip, &mut out);
        assert_eq!(out, "before red and bold");
    }

    #[test]
    fn endless_parameters_are_no_colour() {
        let line = [b"\x1b[".as_slice(), &b"1;".repeat(100), b"mtext"].concat();
        assert_eq!(kept(&line), "text");
    }

    /// Bytes that are mostly the interesting ones.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            3 => prop::sample::select(&b"\x1b\x1b[]P;:m0319?\x07\\\r\tab \x9b\xc2\x85"[..]).prop_map(|b| vec![b]),
            1 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            1 => any::<u8>().prop_map(|b| vec![b]),
            1 => Just(b"\x1b[31m".to_vec()),
        ];
        prop::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_dangerous_is_left_and_a_second_pass_changes_nothing(line in line()) {
            let once = kept(&line);
            prop_assert_eq!(kept(once.as_bytes()), once.clone());
            let mut bare = String::new();
            sanitize(&line, Colour::Strip, &mut bare);
            prop_assert!(bare.chars().all(|c| c == '\t' || !c.is_control()), "{:?}", bare);
            // Every ESC that is left begins a colour.
            for rest in once.split('\u{1b}').skip(1) {
                let end = rest.find(|c: char| !"[0123456789;:".contains(c)).unwrap_or(rest.len());
                prop_assert!(rest.starts_with('[') && rest[end..].starts_with('m'), "{:?}", once);
            }
        }
    }
}
