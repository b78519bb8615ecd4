//! Pages and documentation comments are plain sentences: "Style" in CONTRIBUTING.md.

use std::mem::take;

use super::{Complaints, File, files};

/// Phrases that hide who acts, or replace a word of the contract.
const BANNED: &str = "come again, comes again, came again, coming again, give back, gives back, gave back, giving back, \
    given back, give it back, gives it back, take out, takes out, taken out, overtake, overtakes, overtaken, overtook, \
    whoever, whatever, nobody, no one, somebody, someone, is told, are told, was told, were told, be told, been told, \
    being told, is meant, are meant, was meant, were meant, of yours, of ours, of theirs, is yours, are yours, is ours, \
    are ours, of its own accord, in the way, for want of, keep quiet, keeps quiet, at hand, stand in, stands in, in shape, \
    must not care, on a bad day, found out about, mend, mends, mended";
const QUESTIONS: [&str; 10] =
    ["what", "whether", "where", "who", "whom", "whose", "which", "how", "when", "why"];
const MAX_WORDS: usize = 40;

/// The lines of a page, or of the documentation of one item.
struct Block<'a> {
    lines: Vec<(usize, &'a str)>,
    is_public: bool,
}

/// A sentence. Code counts as one word, and so does the text of a link.
#[derive(Default)]
struct Sentence {
    line: usize,
    words: Vec<String>,
}

impl Sentence {
    /// The words in lower case, with a space before and after each.
    fn plain(&self) -> String {
        let text = self.words.join(" ").to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty());
        format!(" {} ", words.collect::<Vec<_>>().join(" "))
    }
}

fn blocks(file: &File) -> Vec<Block<'_>> {
    let lines = file.text.lines().enumerate().map(|(index, line)| (index + 1, line));
    if file.path.ends_with(".md") {
        return vec![Block { lines: lines.collect(), is_public: false }];
    }
    let (mut blocks, mut block) = (Vec::new(), Vec::new());
    let (mut in_attribute, mut in_public) = (false, false);
    for (number, line) in lines {
        let code = line.trim_start();
        if let Some(text) = code.strip_prefix("///").or_else(|| code.strip_prefix("//!")) {
            block.push((number, text));
            continue;
        }
        let is_attribute = in_attribute || code.starts_with("#[");
        in_attribute = is_attribute && !line.ends_with(']');
        if is_attribute {
            continue;
        }
        if !block.is_empty() {
            blocks.push(Block { lines: take(&mut block), is_public: in_public || code.starts_with("pub ") });
        }
        // Variants and methods are as public as their enum or trait.
        in_public = match line.starts_with(|c: char| c.is_alphabetic() || c == '}') {
            true => line.starts_with("pub enum ") || line.starts_with("pub trait "),
            false => in_public,
        };
    }
    blocks.push(Block { lines: block, is_public: false });
    blocks
}

/// The sentences outside of code, tables and definitions of links.
fn sentences(block: &Block<'_>) -> Vec<Sentence> {
    let (mut found, mut paragraph) = (Vec::new(), Vec::new());
    let (mut in_code, mut was_heading) = (false, false);
    for (number, line) in &block.lines {
        let text = line.trim();
        let is_fence = text.starts_with("```");
        let is_definition = text.starts_with('[') && text.contains("]: ");
        let is_text = !in_code && !is_fence && !is_definition && !text.starts_with(['|', '<']);
        let is_item =
            text.starts_with("- ") || text.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok());
        if !is_text || is_item || was_heading || text.is_empty() || text.starts_with('#') {
            split(&take(&mut paragraph), &mut found);
        }
        in_code ^= is_fence;
        was_heading = text.starts_with('#');
        if is_text {
            paragraph.push((*number, text.trim_start_matches("- ")));
        }
    }
    split(&paragraph, &mut found);
    found
}

fn split(paragraph: &[(usize, &str)], found: &mut Vec<Sentence>) {
    let (mut sentence, mut in_code) = (Sentence::default(), false);
    for (number, line) in paragraph {
        for word in without_markup(line, &mut in_code).split(' ').filter(|word| !word.is_empty()) {
            if sentence.words.is_empty() {
                sentence.line = *number;
            }
            sentence.words.push(word.to_owned());
            if word.trim_end_matches([')', '"', '*', '_', ']']).ends_with(['.', '!', '?']) {
                found.push(take(&mut sentence));
            }
        }
    }
    found.extend(Some(sentence).filter(|rest| !rest.words.is_empty()));
}

/// Removes the content of code and the targets of links, and joins the text of a link to one word.
fn without_markup(line: &str, in_code: &mut bool) -> String {
    let mut text = String::new();
    let (mut in_link, mut in_target) = (false, false);
    for c in line.chars() {
        match c {
            '`' => *in_code = !*in_code,
            ')' if in_target => in_target = false,
            '(' if text.ends_with(']') => in_target = true,
            '[' => in_link = true,
            ']' => in_link = false,
            _ => {}
        }
        match c {
            _ if *in_code || in_target => {}
            ' ' if in_link => text.push('\u{a0}'),
            _ => text.push(c),
        }
    }
    text
}

/// Complains about phrases and long sentences. Returns the number of public items, and those that begin with a question.
fn check(file: &File, complaints: &mut Complaints) -> (usize, Vec<String>) {
    let (mut items, mut questions) = (0, Vec::new());
    for block in blocks(file) {
        let sentences = sentences(&block);
        for sentence in &sentences {
            let (plain, count) = (sentence.plain(), sentence.words.len());
            for phrase in BANNED.split(", ").filter(|phrase| plain.contains(&format!(" {phrase} "))) {
                complaints.add(&file.path, sentence.line, format!("`{phrase}` in a sentence"));
            }
            if count > MAX_WORDS {
                let begin: Vec<_> = plain.split_whitespace().take(4).collect();
                let why = format!("{count} words in the sentence `{} ...`", begin.join(" "));
                complaints.add(&file.path, sentence.line, why);
            }
        }
        if let Some(first) = sentences.first().filter(|_| block.is_public) {
            items += 1;
            let plain = first.plain();
            let question = QUESTIONS.iter().find(|word| plain.starts_with(&format!(" {word} ")));
            questions
                .extend(question.map(|word| format!("{}:{}: begins with `{word}`", file.path, first.line)));
        }
    }
    (items, questions)
}

fn check_all(files: &[File]) -> Complaints {
    let mut complaints = Complaints::default();
    let (mut items, mut questions) = (0, Vec::new());
    for file in files {
        let (more, found) = check(file, &mut complaints);
        items += more;
        questions.extend(found);
    }
    // Below 3 % of the items, a question word is no failure.
    if questions.len() * 100 >= items * 3 {
        complaints.0.extend(questions);
    }
    complaints
}

/// Pages, and the sources whose comments people read as documentation.
fn documents() -> Vec<File> {
    let sources = ["src/", "testkit/", "cli/", "examples/", "benches/"];
    let mut files = files();
    files.retain(|file| {
        let is_source = sources.iter().any(|folder| file.path.starts_with(folder));
        file.path.ends_with(".md") || file.path.ends_with(".rs") && is_source
    });
    files
}

#[test]
fn pages_and_documentation_are_plain() {
    check_all(&documents()).none();
}

#[test]
fn each_rule_finds_its_violation() {
    let long = "word ".repeat(MAX_WORDS);
    let page = format!(
        "# Title\n\nA `nobody` and a\n[link](nobody) stay. The event comes\nagain.\n\n- {long}end.\n- {long}\n\n\
         | nobody |\n\n```text\nnobody\n```\n"
    );
    let source = "//! What a module does is no item.\n\n/// Whether it ended.\n#[must_use]\npub fn ended() {}\n\n\
                  /// How it is kept.\nfn kept() {}\n\npub enum End {\n    /// When it was closed.\n    Closed,\n}\n";
    let files = [("page.md", page.as_str()), ("src/end.rs", source)]
        .map(|(path, text)| File { path: path.to_owned(), text: text.to_owned() });
    assert_eq!(
        check_all(&files).0,
        [
            "page.md:4: `comes again` in a sentence",
            "page.md:7: 41 words in the sentence `word word word word ...`",
            "src/end.rs:3: begins with `whether`",
            "src/end.rs:11: begins with `when`",
        ]
    );
}
