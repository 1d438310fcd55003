# Reads one JSON document and keeps it as v["networks.0.ip_address"] = "10.78.0.5".
# With -v want=KEY prints v[KEY]. Escapes: \" \\ \/ are undone, others stay as they are (no value read here has them).
{ text = text $0 "\n" }
END { at = 1; value(""); if (want != "") print v[want] }

function blank() { while (substr(text, at, 1) ~ /[ \t\r\n,:]/) at++; return substr(text, at, 1) }
function key(path, name) { return path == "" ? name : path "." name }

function value(path,    first) {
  first = blank()
  if (first == "{") object(path)
  else if (first == "[") array(path)
  else if (first == "\"") v[path] = quoted()
  else v[path] = literal()
}
function object(path,    name) {
  at++
  while (at <= length(text)) {
    if (blank() == "}") { at++; return }
    name = quoted(); value(key(path, name))
  }
}
function array(path,    n) {
  at++; n = 0
  while (at <= length(text)) {
    if (blank() == "]") { at++; return }
    value(key(path, n++))
  }
}
function quoted(    out, c) {
  at++; out = ""
  while (at <= length(text)) {
    c = substr(text, at++, 1)
    if (c == "\"") return out
    if (c == "\\") c = substr(text, at++, 1)
    out = out c
  }
  return out
}
function literal(    out) {
  out = ""
  while (at <= length(text) && substr(text, at, 1) !~ /[] \t\r\n,}]/) out = out substr(text, at++, 1)
  if (out == "") at++
  return out
}
