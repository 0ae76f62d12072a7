"""The pages' template; plots are sized so that a phone stacks them."""

_STYLE = """\
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
main { max-width: 78rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.4rem, 4vw, 1.9rem); text-wrap: balance;
 line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0 0 .25rem; }
h3 { font-size: .95rem; margin: 0; }
section, .part { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 1.2rem 1.4rem;
  margin-top: 1rem; }
.part > summary h2 { display: inline; }
.first { display: grid; grid-template-columns: minmax(0, 1.45fr) minmax(0, 1fr); gap: 1.2rem 2rem;
  align-items: center; }
.first > :only-child { grid-column: 1 / -1; }
.first > .shown .plot > svg { max-height: 33rem; }
.first .wide { min-width: 0; }
.first .note { margin: .4rem 0 0; }
@media (max-width: 52rem) { .first { grid-template-columns: minmax(0, 1fr); } section, .part { padding: .9rem; } }
.verdict { font-size: 1.12rem; margin: 0; text-wrap: pretty; }
.note { color: var(--muted); font-size: .9rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; }
.plot text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.wide { min-width: 24rem; max-width: 39rem; margin: 0 auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr));
  gap: 1.4rem 1.2rem; }
figure { margin: 0; min-width: 0; }
.small figure { max-width: 23rem; }
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
.n { text-align: right; font-variant-numeric: tabular-nums; }
.full { min-width: 60rem; }
.middle { min-width: 40rem; max-width: 54rem; }
.points { padding-left: 1.2rem; margin: .6rem 0; }
.points li { margin-top: .3rem; }
code { font-size: .9em; background: #eef1f4; border-radius: 4px; padding: .05em .3em; }
.apart { margin: 1.6rem 0 .4rem; }
details details { border-top: 1px solid var(--line); padding: .7rem 0 .3rem; }
details details:first-of-type { margin-top: 1.4rem; }
summary { cursor: pointer; }
summary h3 { display: inline; }
summary span { color: var(--muted); font-size: .9rem; }
.marked td { background: #eef5fa; font-weight: 600; }
.many table { font-size: .84rem; }
.many th, .many td { padding: .3rem .55rem; }
.many th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; }
.many .n, .many td { font-variant-numeric: tabular-nums; }
.part .note { margin: 1.5rem 0 .5rem; }
.part > .pair { margin-top: 1rem; }
.small + .note, .pair + .note { margin-bottom: 0; }
.part summary + .note, .part .note + .note { margin-top: .5rem; }
@media print { body { background: #fff; } main { padding: 0; } .first, .plot, tr { break-inside: avoid; }
  section, .part { border: 0; padding: 0; } .scroll { overflow: visible; } .full, .middle, .wide { min-width: 0; }
  th, td { white-space: normal; padding: .2rem .4rem; } table { font-size: .7rem; }
  .whole details::details-content { content-visibility: visible; block-size: auto; } }
</style>
</head>
"""

_BLOCKS = """\
{% macro table_of(table, label) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}">
<table>
<thead><tr>
{% for name, number in table.columns %}
<th scope="col"{% if number %} class="n"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr{% if table.marked and loop.index0 in table.marked %} class="marked"{% endif %}>
{% for cell in row -%}
<td{% if table.columns[loop.index0][1] %} class="n"{% endif %}>{{ cell }}</td>
{%- endfor %}

</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro figure_of(panel) %}
<figure>
<figcaption><h3>{{ panel.title }}</h3>{% if panel.lead %}<span>{{ panel.lead }}</span>{% endif %}</figcaption>
<div class="plot" role="img" aria-label="{{ panel.alt }}">
{{ panel.svg | compact }}
</div>
</figure>
{% endmacro %}
{% macro block_of(block, label) %}
{% if block.kind == "table" and block.rows %}
{{ table_of(block | cells, label) }}
{% elif block.kind == "figure" %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}, plot">
<div class="plot {{ block.width }}" role="img" aria-label="{{ block.alt }}">
{{ block.svg | compact }}
</div>
</div>
{% elif block.kind == "bullets" and block.lines %}
<ul class="points">
{% for line in block.lines %}
<li>{{ line | inline }}</li>
{% endfor %}
</ul>
{% elif block.kind == "text" %}
<p{% if block.note %} class="note"{% endif %}>{{ block.text | inline }}</p>
{% elif block.kind == "panels" %}
{% if block.legend %}
<ul class="legend">
{% for name, colour in block.legend %}
<li><span class="chip" style="background: {{ colour }}"></span>{{ name }}</li>
{% endfor %}
</ul>
{% endif %}
<div class="{{ block.size }}">
{% for panel in block.panels %}
{{ figure_of(panel) }}
{% endfor %}
</div>
{% endif %}
{% endmacro %}
{% macro inner(section) %}
{% for block in section.blocks %}
{{ block_of(block, section.title) }}
{% endfor %}
{% for below in section.sections %}
{% if below.folded %}
<details>
<summary><h3>{{ below.title | inline }}</h3> <span>{{ below.lead | inline }}</span></summary>
{{ inner(below) }}
</details>
{% else %}
<h3 class="apart">{{ below.title | inline }}</h3>
{{ inner(below) }}
{% endif %}
{% endfor %}
{% endmacro %}
"""

PAGE = (
    _STYLE
    + _BLOCKS
    + """\
<body>
<main class="{{ "many" if sections | length > 6 else "whole" }}">
<header>
<h1>{{ title }}</h1>
<p class="verdict">{{ opening.verdict | inline }}</p>
</header>
{% if opening.picture or opening.beside %}
<section class="first">
{% if opening.picture %}
<div class="shown">
{% for block in opening.picture %}
{{ block_of(block, title) }}
{% endfor %}
</div>
{% endif %}
{% if opening.beside %}
<div>
{% for block in opening.beside %}
{{ block_of(block, title) }}
{% endfor %}
</div>
{% endif %}
</section>
{% endif %}
{% for section in sections %}
{% if section.folded %}
<details class="part">
<summary><h2>{{ section.title | inline }}</h2> <span>{{ section.lead | inline }}</span></summary>
{{ inner(section) }}
</details>
{% else %}
<section>
<h2>{{ section.title | inline }}</h2>
{{ inner(section) }}
</section>
{% endif %}
{% endfor %}
</main>
</body>
</html>
"""
)
"""A page whose first screen is its opening; what is folded needs no script to be opened, and is printed where the page
is short."""
