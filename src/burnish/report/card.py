def render_card(folder): return "x"
