"""The look of the report's page: system fonts, light and dark, from a phone to a wide screen."""

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --paper: #ffffff; --raised: #f6f8fa; --accent: #0072b2;
  --warn-ink: #6b3d00; --warn-paper: #fff4df; --warn-line: #e69f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3adb8; --line: #343b44; --paper: #14181d; --raised: #1d232a; --accent: #56b4e9;
    --warn-ink: #ffdf9e; --warn-paper: #33270f; --warn-line: #b97f00; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.9rem; padding-top: 0.9rem; border-top: 2px solid var(--accent); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 52rem; overflow-wrap: anywhere; }
.note, figcaption { color: var(--soft); font-size: 0.875rem; }
.warning { background: var(--warn-paper); color: var(--warn-ink); border-left: 4px solid var(--warn-line);
  padding: 0.6rem 0.9rem; border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.25rem 1.2rem; margin: 0.6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; max-width: max-content; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.35rem 0.75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { background: var(--raised); white-space: nowrap; font-weight: 600; }
td { white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 17rem; max-width: 34rem; }
tr.total { font-weight: 600; background: var(--raised); }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pictures { display: grid; gap: 1.2rem; margin: 0.6rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
img { display: block; max-width: 100%; height: auto; padding: 0.3rem; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: 0.35rem; max-width: 40rem; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem 0.9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; }
@media (max-width: 40rem) {
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 0.5rem; }
  th, td { padding: 0.3rem 0.5rem; }
  figure.wide { overflow-x: auto; }
  figure.wide img { max-width: none; width: 44rem; }
}
@media print { main { max-width: none; } section { break-inside: avoid-page; } }
"""
