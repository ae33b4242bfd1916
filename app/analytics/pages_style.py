"""The style of the reports' page: light or dark as the reader's system is, from a phone's width up, and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #16191f; --soft: #5c6470; --line: #e3e6eb;
  --c1: #3661d8; --c2: #d9534a; --c3: #a4abb6; --c4: #1f9d7a; --c5: #d18a1d; --on: #ffffff;
  --good: #14795c; --bad: #b93a32;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1115; --card: #181b21; --ink: #e9ecf1; --soft: #9aa3b0; --line: #2a2f38;
    --c1: #7c9cff; --c2: #f0837b; --c3: #6b7482; --c4: #4fc9a3; --c5: #e5b25a; --on: #0f1115;
    --good: #5fd3ae; --bad: #ff928a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { margin: 0; font-size: 32px; line-height: 1.15; letter-spacing: -0.02em; }
h2 { margin: 40px 0 14px; font-size: 20px; letter-spacing: -0.01em; }
h3 { margin: 0 0 10px; font-size: 15px; }
p { margin: 0; }
.over { color: var(--soft); font-weight: 600; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 14px; }
header p + h1 { margin-top: 4px; }
header h1 + p { margin-top: 8px; }
.note {
  margin-top: 20px; padding: 12px 16px; border-left: 3px solid var(--c5); background: var(--card);
  border-radius: 0 8px 8px 0;
}
.tiles { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px; margin-top: 26px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
.columns { columns: 400px 2; column-gap: 16px; }
.columns .card { break-inside: avoid; margin-bottom: 16px; }
.narrow { max-width: 660px; }
.narrow .soft { margin-top: 12px; }
.tile, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  min-width: 0;
}
.card { padding: 18px 20px; }
.tile dt { color: var(--soft); font-size: 14px; }
.tile dd {
  margin: 2px 0 0; font-size: 25px; font-weight: 650; letter-spacing: -0.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.tile .soft, .tile .trend {
  display: block; margin: 3px 0 0; font-size: 13px; font-weight: 400; letter-spacing: 0;
  white-space: normal; color: var(--soft);
}
.tile .good { color: var(--good); } .tile .bad { color: var(--bad); }
.legend {
  display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: 13px;
}
.legend svg { width: 10px; height: 10px; margin-right: 6px; vertical-align: -1px; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .strong { fill: var(--ink); font-weight: 600; }
.chart .off { fill: var(--ink); } .chart .on { fill: var(--on); }
.grid { stroke: var(--line); stroke-width: 1; }
.c1 {
  fill: var(--c1); stroke: var(--c1); } .c2 { fill: var(--c2); stroke: var(--c2);
  } .c3 { fill: var(--c3); stroke: var(--c3);
}
.c4 { fill: var(--c4); stroke: var(--c4); } .c5 { fill: var(--c5); stroke: var(--c5); }
rect { stroke: none !important; }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
.chart circle { stroke: var(--card); stroke-width: 1.5; }
.ranks { margin: 0; padding: 0; list-style: none; }
.ranks li + li { margin-top: 14px; }
.rank { display: flex; justify-content: space-between; align-items: baseline; gap: 16px; }
.rank b { font-weight: 600; min-width: 0; overflow-wrap: anywhere; }
.rank span { flex: none; font-variant-numeric: tabular-nums; }
.share { display: block; width: 100%; height: 6px; margin: 5px 0 4px; border-radius: 3px; overflow: hidden; }
.facts { color: var(--soft); font-size: 13px; font-variant-numeric: tabular-nums; }
.facts span { display: inline-block; white-space: nowrap; margin-right: 12px; }
.track { fill: var(--line); }
footer { margin-top: 44px; padding-top: 16px; border-top: 1px solid var(--line); }
footer p + p { margin-top: 6px; }
@media (max-width: 900px) { .tiles { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); } }
@media (max-width: 560px) {
  main { padding: 24px 14px 40px; }
  h1 { font-size: 26px; }
  h2 { margin-top: 32px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .tile { padding: 12px 14px; }
  .tile dd { font-size: 21px; }
  .card { padding: 14px; }
  .chart text { font-size: 14.5px; }
}
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""
