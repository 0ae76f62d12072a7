"""The pages' style and their common parts; plots are sized so that a phone stacks them."""

STYLE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #1b2733; --muted: #5b6875; --line: #dfe4ea; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); text-wrap: balance;
 line-height: 1.2; letter-spacing: -.02em; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0 0 .25rem; }
h3 { font-size: .95rem; margin: 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 1.4rem;
  margin-top: 1.25rem; }
.summary { list-style: none; margin: 0; padding: 0; }
.summary li { margin-top: .35rem; }
.summary li:first-child { font-size: 1.12rem; font-weight: 600; }
.note { color: var(--muted); font-size: .9rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; }
.plot text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.wide { min-width: 24rem; max-width: 39rem; margin: 0 auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr));
  gap: 1.4rem 1.2rem; }
figure { margin: 0; min-width: 0; }
.panels figure { max-width: 23rem; }
figcaption { margin-bottom: .3rem; }
figcaption span { color: var(--muted); font-size: .82rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; margin: 0 0 1.1rem;
  font-size: .9rem; }
.chip { display: inline-block; width: 1.3em; height: .28em; border-radius: 1em; vertical-align: middle;
  margin-right: .45em; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .45rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.full { min-width: 60rem; }
.middle { min-width: 40rem; max-width: 54rem; }
.broad { max-width: 78rem; }
.points { padding-left: 1.2rem; margin: .6rem 0; }
.points li { margin-top: .3rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: 1rem 0 0; }
nav a { color: var(--accent); }
code { font-size: .9em; background: #eef1f4; border-radius: 4px; padding: .05em .3em; }
.apart { margin: 1.6rem 0 .4rem; }
details { border-top: 1px solid var(--line); padding: .7rem 0 .3rem; }
details:first-of-type { margin-top: 1.4rem; }
summary { cursor: pointer; }
summary h3 { display: inline; }
summary span { color: var(--muted); font-size: .9rem; }
.marked td { background: #eef5fa; font-weight: 600; }
.broad table { font-size: .84rem; }
.broad th, .broad td { padding: .3rem .55rem; }
.broad th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; }
.broad .number, .broad td { font-variant-numeric: tabular-nums; }
.broad .note { margin: 1.5rem 0 .5rem; }
.broad summary + .note, .broad .note + .note { margin-top: .5rem; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
</style>
</head>
"""

TABLE = """\
{% macro table_of(table, label) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}">
<table>
<thead><tr>
{% for name, number in table.columns %}
<th scope="col"{% if number %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr{% if table.marked and loop.index0 in table.marked %} class="marked"{% endif %}>
{% for cell in row %}
<td{% if table.columns[loop.index0][1] %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
"""

WEIGHTS = """\
{% macro weights_of(weights) %}
<p class="note">Mean weight on each group, over the student's training in percent. Dotted line: equal weights,
{{ weights.equal }}.</p>
<ul class="legend">
{% for teacher in weights.legend %}
<li><span class="chip" style="background: {{ teacher.colour }}"></span>{{ teacher.name }}</li>
{% endfor %}
</ul>
<div class="panels">
{% for panel in weights.panels %}
<figure>
<figcaption><h3>{{ panel.title }}</h3><span>{{ panel.lead }}</span></figcaption>
<div class="plot" role="img" aria-label="{{ panel.alt }}">
{{ panel.svg }}
</div>
</figure>
{% endfor %}
</div>
{% if weights.rest %}
<p class="note" style="margin: 1.2rem 0 0">Not drawn: {{ weights.rest | join("; ") }}.</p>
{% endif %}
{% endmacro %}
"""

PAGE = (
    STYLE
    + TABLE
    + WEIGHTS
    + """\
<body>
<main>
<header>
<h1>{{ title }}</h1>
{% if summary %}
<ul class="summary">
{% for line in summary %}
<li>{{ line | inline }}</li>
{% endfor %}
</ul>
{% endif %}
</header>
{% if accuracy %}
<section>
<h2>Student accuracy by weighting</h2>
<p class="note">Dot: mean; bar: interval.
{% if accuracy.has_uniform %} Dashed line: equal weights.{% endif %}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Accuracy plot">
<div class="plot wide" role="img" aria-label="{{ accuracy.alt }}">
{{ accuracy.svg }}
</div>
</div>
</section>
{% endif %}
{% if curves %}
<section>
<h2>Learning curve of the policy</h2>
<p class="note">Each panel has its own scale.</p>
<div class="pair">
{% for curve in curves %}
<figure>
<figcaption><h3>{{ curve.title }}</h3></figcaption>
<div class="plot" role="img" aria-label="{{ curve.alt }}">
{{ curve.svg }}
</div>
</figure>
{% endfor %}
</div>
</section>
{% endif %}
{% if weights %}
<section>
<h2>Teacher weights over training</h2>
{{ weights_of(weights) }}
</section>
{% endif %}
{% for table in tables %}
<section>
<h2 id="table-{{ loop.index }}">{{ table.caption }}</h2>
{{ table_of(table.table | cells, table.caption) }}
</section>
{% endfor %}
</main>
</body>
</html>
"""
)
"""The report of a run or a comparison."""
