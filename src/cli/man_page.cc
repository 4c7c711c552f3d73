#include "cli/man_page.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

#include "base/result.h"
#include "cli/exit_codes.h"

namespace godwit::cli {
namespace {

using Commands = std::vector<const CLI::App*>;

Commands commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

// What would mean something to roff means itself.
std::string plain(const std::string& text) {
  std::string out;
  bool line_begins = true;
  for (const char c : text) {
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else
      out += c;
    line_begins = c == '\n';
  }
  return out;
}

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

std::string options_section(const CLI::App& app) {
  std::string out;
  for (const CLI::Option* option : app.get_options()) {
    const bool positional = option->get_positional();
    std::string name = option->get_name(positional);
    std::replace(name.begin(), name.end(), ',', '\n');
    std::string names;
    std::istringstream parts(name);
    for (std::string part; std::getline(parts, part);)
      names += (names.empty() ? "\\fB" : ", \\fB") + plain(part) + "\\fR";
    // A value, unless it is a flag; what is checked against a list says so in its description.
    std::string type = option->get_items_expected_max() > 0 ? option->get_type_name() : "";
    type = type.substr(0, type.find(':'));
    if (!type.empty() && !positional) names += " \\fI" + plain(type) + "\\fR";
    out += fmt::format(".TP\n{}\n{}\n", names, plain(option->get_description()));
  }
  return out.empty() ? out : ".SH OPTIONS\n" + out;
}

// "Examples:\n  a command   what it does\nmore text"
std::string footer_section(const std::string& footer) {
  constexpr std::string_view head = "Examples:\n";
  if (!footer.starts_with(head)) return footer.empty() ? "" : ".PP\n" + plain(footer) + "\n";
  return ".SH EXAMPLES\n.nf\n" + plain(footer.substr(head.size())) + "\n.fi\n";
}

std::string page(const CLI::App& app, const std::string& words, const std::string& body) {
  std::string name = words;
  std::replace(name.begin(), name.end(), ' ', '-');
  std::string what = app.get_description();
  const std::string summary = what.substr(0, what.find('\n'));
  const auto formatter = std::dynamic_pointer_cast<CLI::Formatter>(app.get_formatter());
  INVARIANT(formatter != nullptr, "the formatter of {}", words);
  std::string usage = formatter->make_usage(&app, words);
  constexpr std::string_view label = "Usage: ";
  if (const std::size_t at = usage.find(label); at != std::string::npos)
    usage = usage.substr(at + label.size());
  while (!usage.empty() && usage.back() == '\n') usage.pop_back();
  return fmt::format(".TH {} 1\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n{}\n.SH DESCRIPTION\n{}\n{}{}{}",
                     upper(name), plain(name), plain(summary), plain(usage), plain(what),
                     options_section(app), footer_section(app.get_footer()), body);
}

std::string main_body(const CLI::App& app) {
  std::string out = ".SH COMMANDS\n";
  for (const CLI::App* command : commands_of(app))
    out += fmt::format(".TP\n\\fBgodwit\\-{}\\fR(1)\n{}\n", plain(command->get_name()),
                       plain(command->get_description()));
  out += ".SH EXIT STATUS\n";
  for (const auto& entry : exit_codes)
    out += fmt::format(".TP\n{}\n{}\n", static_cast<int>(entry.code), plain(entry.meaning));
  return out;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> man_pages(const CLI::App& app) {
  std::vector<std::pair<std::string, std::string>> pages;
  pages.emplace_back("godwit.1", page(app, "godwit", main_body(app)));
  for (const CLI::App* command : commands_of(app)) {
    std::string more;
    for (const CLI::App* part : commands_of(*command))
      more += fmt::format(".SS godwit {} {}\n{}\n{}{}", plain(command->get_name()),
                          plain(part->get_name()), plain(part->get_description()),
                          options_section(*part), footer_section(part->get_footer()));
    more += ".SH SEE ALSO\n\\fBgodwit\\fR(1)\n";
    pages.emplace_back(fmt::format("godwit-{}.1", command->get_name()),
                       page(*command, "godwit " + command->get_name(), more));
  }
  return pages;
}

}  // namespace godwit::cli
