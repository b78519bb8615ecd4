//! The commands that the documentation permits are those that the scripts and the connection use.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("docs.md");
/// Words in capitals in the scripts that are options of commands.
const OPTIONS: &str = "BYLEX BYSCORE COUNT CREATE DESTROY ENTRIESREAD LIMIT MATCH MAXLEN MINID MKSTREAM REV SETID \
                       STREAM TYPE WITHSCORES";
/// Commands of the connection, outside of scripts.
const OF_CONNECTION: &str = "evalsha hello info ping publish script subscribe unsubscribe";

/// Returns the commands that the page permits always, and those that it permits for some settings.
fn permitted() -> [BTreeSet<String>; 2] {
    let section = PAGE.split_once("# Permissions").unwrap().1.split("\n# ").next().unwrap();
    let (_, block) = section.split_once("ACL SETUSER").unwrap();
    let (always, sometimes) = block.split_once("```").unwrap();
    [always, sometimes].map(|text| {
        let words = text.split(|c: char| c.is_whitespace() || c == '`');
        // A command with a subcommand is a command.
        let commands = words.filter_map(|word| word.strip_prefix('+')?.split(['|', '\\']).next());
        commands.map(str::to_owned).collect()
    })
}

/// Returns the texts in quotes of a script that are in capitals.
fn commands_of(script: &str) -> impl Iterator<Item = String> {
    let code = script.lines().map(|line| line.split("--").next().unwrap_or_default());
    let texts = code.flat_map(|line| line.split(['\'', '"']).skip(1).step_by(2));
    let is_command = |text: &&str| text.len() >= 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
    texts
        .filter(is_command)
        .filter(|text| !OPTIONS.split(' ').any(|option| option == *text))
        .map(str::to_ascii_lowercase)
}

fn commands_of_scripts() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provider/redis/script");
    let folders = [folder.join("parts"), folder];
    let files =
        folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let scripts = files.filter(|path| path.extension().is_some_and(|extension| extension == "lua"));
    scripts.flat_map(|path| commands_of(&fs::read_to_string(path).unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
fn the_page_permits_exactly_the_commands_in_use() {
    let used = commands_of_scripts();
    if used.is_empty() {
        return;
    }
    let [always, sometimes] = permitted();
    let missing: Vec<_> = used.difference(&always).filter(|command| !sometimes.contains(*command)).collect();
    assert!(missing.is_empty(), "docs.md does not permit {missing:?}");
    let is_of_connection = |command: &str| OF_CONNECTION.split(' ').any(|own| own == command);
    let unused: Vec<_> = always.difference(&used).filter(|command| !is_of_connection(command)).collect();
    assert!(unused.is_empty(), "docs.md permits {unused:?}, which no script uses");
}

#[test]
fn commands_are_found_in_scripts() {
    let script = "local x = call('HGET', key, 'COUNT') -- call('DEL')\nredis.pcall(\"XADD\", 'a', 'No')\nbulk('ZREM', k)";
    assert_eq!(commands_of(script).collect::<Vec<_>>(), ["hget", "xadd", "zrem"]);
    let [always, sometimes] = permitted();
    assert!(always.contains("script") && !always.contains("scan"));
    assert_eq!(
        sometimes,
        ["asking", "client", "cluster", "config", "scan", "select", "type", "wait", "waitaof", "xgroup"]
            .map(str::to_owned)
            .into()
    );
}
