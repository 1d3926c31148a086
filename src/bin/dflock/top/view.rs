//! How `top` looks: the servers, the keys, and what can be pressed. Knows of no terminal.

use std::borrow::Cow;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Table, TableState};
use tokio::time::Instant;

use crate::table::{count, grouped, seconds};
use crate::top::model::{Age, Line, Model, Server, Sort, Standing};

/// A server's answer that is older is marked so: the next one takes its time.
const OLD: Duration = Duration::from_secs(5);

const HELP: &str = "w waiting  a age  t ttl  k key  r reverse  Tab server  ↑↓ scroll  q quit";

/// Colours are left out where the user wants none.
fn coloured(colour: Color) -> Style {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if unwanted { Style::new() } else { Style::new().fg(colour) }
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model, now: Instant) {
    // However many there are, the keys keep the better part of the screen.
    let most = (frame.area().height / 2).max(1) as usize;
    let servers = u16::try_from(model.servers.len().min(most)).unwrap_or(u16::MAX);
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(servers), Constraint::Min(3), Constraint::Length(1)])
            .areas(frame.area());
    draw_servers(frame, model, now, head);
    draw_keys(frame, model, now, body);
    frame.render_widget(Paragraph::new(HELP).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn draw_servers(frame: &mut Frame<'_>, model: &Model, now: Instant, area: Rect) {
    let first = model.only.unwrap_or(0).saturating_sub(usize::from(area.height).saturating_sub(1));
    let lines = model.servers.iter().enumerate().skip(first);
    let lines: Vec<_> = lines.map(|(shard, server)| server_line(model, shard, server, now)).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn server_line<'a>(model: &Model, shard: usize, server: &'a Server, now: Instant) -> Text<'a> {
    let marker = if model.only == Some(shard) { "▸" } else { " " };
    let (word, style, rest) = match &server.standing {
        Standing::Asked => ("...", Style::new(), Cow::Borrowed("")),
        Standing::Up { summary, at, .. } => {
            let old = now.saturating_duration_since(*at);
            let rest = match old < OLD {
                true => Cow::Borrowed(summary.as_str()),
                false => Cow::Owned(format!("{summary}, {} ago", whole_seconds(old))),
            };
            ("up", coloured(Color::Green), rest)
        }
        Standing::Failed(failed) => {
            (failed.status, coloured(Color::Red), Cow::Borrowed(failed.error.as_str()))
        }
    };
    Text::from(vec![
        Span::raw(format!("{marker}{shard} ")),
        Span::styled(&server.name, Style::new().add_modifier(Modifier::BOLD)),
        Span::raw("  "),
        Span::styled(word, style),
        Span::raw("  "),
        Span::raw(rest),
    ])
}

fn draw_keys(frame: &mut Frame<'_>, model: &mut Model, now: Instant, area: Rect) {
    let (lines, all) = model.lines(now);
    let selected = model.selected.min(lines.len().saturating_sub(1));
    let arrow = |sort| match (model.sort == sort, model.reversed) {
        (false, _) => "",
        (true, false) => "▾",
        (true, true) => "▴",
    };
    let header = [
        format!("KEY{}", arrow(Sort::Key)),
        "SERVER".to_owned(),
        "HELD".to_owned(),
        format!("WAITING{}", arrow(Sort::Waiters)),
        format!("TTL{}", arrow(Sort::Ttl)),
        format!("AGE{}", arrow(Sort::Age)),
    ];
    let widths = [
        Constraint::Min(12),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(12),
    ];
    let what = match model.only {
        None => "all servers".to_owned(),
        Some(shard) => model.servers[shard].name.clone(),
    };
    let cut = match all - lines.len() {
        0 => String::new(),
        cut => format!(", the first {}, {} more not shown", grouped(lines.len()), grouped(cut)),
    };
    let title = format!(" {}, {what}{cut} ", count(all, "key"));
    let table = Table::new(lines.iter().map(key_row), widths)
        .header(TableRow::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title));
    let mut state = TableState::new().with_selected((!lines.is_empty()).then_some(selected));
    frame.render_stateful_widget(table, area, &mut state);
    model.selected = selected;
}

fn key_row(line: &Line<'_>) -> TableRow<'static> {
    let row = line.row;
    let style = if row.waiters > 0 { coloured(Color::Yellow) } else { Style::new() };
    let age = line.age.map_or_else(|| "-".to_owned(), age);
    let cells = [row.shown(), line.shard.to_string(), row.held(), row.waiters.to_string(), row.ttl(), age];
    TableRow::new(cells.map(Cell::from)).style(style)
}

/// A plus says that it was held before anybody looked.
fn age(age: Age) -> String {
    format!("{}{}", whole_seconds(age.span), if age.at_least { "+" } else { "" })
}

fn whole_seconds(span: Duration) -> String {
    seconds(Duration::from_secs(span.as_secs()))
}
