//! The verb `port`.

use clap::Args;

/// Show who listens on a port, or free it of what a dead run left
///
/// Listeners only, TCP and UDP, IPv4 and IPv6, each with process, user, age, and the run and service of lariat that it
/// is. The exit code is 0 when nobody listens on any of the ports, and 7 when somebody does.
///
/// With --free, processes that a run of lariat left behind are ended, gracefully first, and the port is proven free.
/// Nobody else is touched: of a live run, `lariat stop` and `lariat down` end the services; a foreign process is shown
/// with the command that ends it.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "\
Examples:
  lariat port 3000
  lariat port 3000 5173 --free
  lariat port 3000 --json | jq '.ports[].holders[].processes[].pid'
  lariat port 3000 > /dev/null && npm run dev    only if nobody listens there")]
pub(crate) struct PortArgs {
    /// The ports, from 1 to 65535
    #[arg(value_name = "PORT", required = true, value_parser = port)]
    pub(crate) ports: Vec<u16>,
    /// End what holds them, if it was left by a run of lariat that is over
    #[arg(long)]
    pub(crate) free: bool,
    /// Do so without asking
    #[arg(short, long, requires = "free")]
    pub(crate) yes: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn port(text: &str) -> Result<u16, &'static str> {
    let number = text.parse().ok().filter(|port| *port > 0);
    number.ok_or("a port is a number from 1 to 65535")
}

/// Reads the plainest form, `port N…`, without the machinery: what is left to do takes less time than that would.
/// `None` for anything else, which is read as every other command line.
pub(crate) fn parse(words: &[std::ffi::OsString]) -> Option<PortArgs> {
    let port = |word: &std::ffi::OsString| {
        let text = word.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        text.parse::<u16>().ok().filter(|port| *port > 0)
    };
    let ports = words.iter().map(port).collect::<Option<Vec<u16>>>()?;
    (!ports.is_empty()).then_some(PortArgs { ports, free: false, yes: false, json: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        port: PortArgs,
    }

    fn by_clap(line: &str) -> Result<PortArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("port").chain(line.split_whitespace())).map(|cli| cli.port)
    }

    #[test]
    fn what_is_documented_is_read() {
        for line in ["1", "65535 3000", "3000 --free", "3000 --free --yes --json", "--json 3000"] {
            assert!(by_clap(line).is_ok(), "{line}");
        }
        for line in ["", "0", "65536", "http", "-1", "3000 --yes", "3000 0", "3000-3005"] {
            let error = by_clap(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        for (line, wrong) in
            [("http", "http"), ("65536", "65536"), ("3000 0", "0"), ("3000-3005", "3000-3005")]
        {
            let said = by_clap(line).unwrap_err().to_string();
            let wanted = format!("'{wrong}' for '<PORT>...': a port is a number from 1 to 65535");
            assert!(said.contains(&wanted), "{line}: {said}");
        }
    }

    #[test]
    fn the_short_way_reads_as_the_long_one_or_not_at_all() {
        for line in
            ["1", "65535 3000", "080", "3000 --free", "", "0", "65536", "http", "-1", "+5", "3000 --", "3 0"]
        {
            let words: Vec<std::ffi::OsString> = line.split_whitespace().map(Into::into).collect();
            if let Some(short) = parse(&words) {
                assert_eq!(short, by_clap(line).unwrap(), "{line}");
            }
        }
        assert!(parse(&["3000".into()]).is_some());
    }
}
