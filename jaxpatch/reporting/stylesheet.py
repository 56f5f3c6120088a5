"""The page's looks: one column, light, the reader's own sans-serif; folds to a phone and onto paper."""

CSS = """
:root { --ink: #1b1e23; --soft: #5b626d; --line: #e0e3e7; --pale: #f6f7f8; --blue: #2463a6; --rust: #a8430f;
  --green: #1a6e52; }
* { box-sizing: border-box; }
html { color-scheme: light; -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.58 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif; }
main, header, footer { max-width: 980px; margin: 0 auto; padding: 0 32px; }
header { padding-top: 52px; }
.kicker { margin: 0 0 6px; font-size: 13px; letter-spacing: .06em; text-transform: uppercase; color: var(--soft); }
h1 { margin: 0 0 18px; font-size: 34px; line-height: 1.18; letter-spacing: -.015em; font-weight: 650;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 23px; line-height: 1.25; letter-spacing: -.01em; font-weight: 650; }
h3 { margin: 34px 0 6px; font-size: 16.5px; line-height: 1.35; font-weight: 650; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 46em; overflow-wrap: anywhere; }
.finding { font-size: 20px; line-height: 1.48; max-width: 40em; margin: 0 0 24px; }
.warning { border-left: 4px solid var(--rust); background: #fdf4ef; padding: 10px 14px; border-radius: 0 6px 6px 0; }
.said { border-left: 4px solid var(--blue); background: #f2f6fb; padding: 10px 14px; border-radius: 0 6px 6px 0;
  max-width: none; }
.lead { color: var(--soft); margin-bottom: 16px; }
nav { margin: 26px 0 0; padding: 12px 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
  font-size: 14.5px; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 22px; }
a { color: var(--blue); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
section { padding: 44px 0 10px; border-bottom: 1px solid var(--line); scroll-margin-top: 8px; }
section:last-of-type { border-bottom: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 0;
  padding: 0; }
.cards > div { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px 11px; }
.cards dt { font-size: 13px; color: var(--soft); line-height: 1.35; }
.cards dd { margin: 3px 0 0; font-size: 20px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
.cards dd small { display: block; margin-top: 3px; font-size: 13px; font-weight: 400; letter-spacing: 0;
  color: var(--soft); line-height: 1.4; }
figure { margin: 22px 0 26px; }
.plate { overflow-x: auto; }
.plate svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: 8px; font-size: 14px; line-height: 1.5; color: var(--soft); max-width: 58em; }
.wide { overflow-x: auto; margin: 14px 0 22px; }
table { border-collapse: collapse; font-size: 14.5px; line-height: 1.45; min-width: min(100%, 30em); }
caption { text-align: left; font-weight: 650; padding: 0 0 6px; }
th, td { text-align: left; vertical-align: top; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); }
thead th { font-size: 13px; font-weight: 500; color: var(--soft); border-bottom-color: #c3c8cf; white-space: nowrap; }
tbody th { font-weight: 500; }
.facts tbody th { color: var(--soft); font-weight: 400; white-space: nowrap; padding-right: 26px; }
.facts td { overflow-wrap: anywhere; }
.pairs { columns: 2 300px; column-gap: 44px; margin: 14px 0 22px; font-size: 14.5px; }
.pairs > div { display: grid; grid-template-columns: 9.5em minmax(0, 1fr); gap: 12px; padding: 5px 0;
  border-bottom: 1px solid var(--line);
  break-inside: avoid; }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { text-align: right; }
.code, code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 13px; }
.code { overflow-wrap: anywhere; }
pre { background: var(--pale); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0 0 18px; }
.badge { display: inline-block; min-width: 3.2em; padding: 1px 9px; border-radius: 99px; font-size: 12.5px;
  font-weight: 600; text-align: center;
  line-height: 1.6; white-space: nowrap; }
.badge.yes { background: #e3f3ec; color: var(--green); }
.badge.no { background: #fbe9e0; color: var(--rust); }
.badge.none { background: #eef0f2; color: var(--soft); }
.bars { display: grid; grid-template-columns: max-content minmax(80px, 1fr) max-content max-content; gap: 7px 14px;
  align-items: center;
  font-size: 14.5px; margin: 10px 0 22px; max-width: 640px; }
.bars .track { position: relative; height: 12px; background: #eef0f2; border-radius: 3px; overflow: hidden; }
.bars .fill { position: absolute; top: 0; bottom: 0; left: 0; background: var(--blue); border-radius: 3px; }
.bars .fill.minus { background: var(--rust); }
.sample { margin: 0 0 26px; }
.prompt { margin: 0 0 10px; padding: 9px 14px; background: var(--pale); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  max-width: none; font-size: 15px; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(268px, 1fr)); gap: 12px; }
.answer { border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px 12px; display: flex;
  flex-direction: column; min-width: 0; }
.answer header { display: flex; justify-content: space-between; align-items: baseline; gap: 10px; padding: 0 0 6px;
  margin: 0; max-width: none;
  font-size: 13.5px; font-weight: 650; overflow-wrap: anywhere; }
.answer p { margin: 0; font-size: 14px; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 19em; overflow-y: auto; }
.answer p.empty { color: var(--soft); font-style: italic; }
details { margin: 6px 0 16px; }
summary { cursor: pointer; color: var(--blue); font-size: 14.5px; padding: 4px 0; }
ul.plain { margin: 0 0 14px; padding: 0 0 0 20px; max-width: 46em; }
ul.plain li { margin: 0 0 9px; }
footer { padding-top: 18px; padding-bottom: 60px; font-size: 13.5px; color: var(--soft); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
@media (max-width: 640px) {
  main, body > header, footer { padding-left: 18px; padding-right: 18px; }
  body > header { padding-top: 30px; }
  h1 { font-size: 27px; }
  h2 { font-size: 21px; }
  .finding { font-size: 18px; }
  section { padding-top: 34px; }
  .plate svg { min-width: 660px; }
  figure:has(svg) figcaption::before { content: "Swipe the figure sideways to see all of it. "; color: var(--ink); }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .cards > div { padding: 10px 12px; }
  .cards dd { font-size: 18px; }
  .answers { grid-template-columns: 1fr; }
  .facts tbody th { white-space: normal; padding-right: 14px; }
  .bars { grid-template-columns: minmax(0, max-content) minmax(40px, 1fr) max-content max-content; font-size: 13.5px; }
}
@media print {
  body { font-size: 11pt; }
  nav { display: none; }
  main, body > header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  figure, .answer, tr, .cards > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .answer p { max-height: none; overflow: visible; }
  .plate, .wide { overflow: visible; }
  a { color: inherit; }
}
"""
