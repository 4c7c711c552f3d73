// Output for people: aligned tables, units, colours on a terminal only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace godwit::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Columns as wide as their widest cell; the last one isn't padded.
  std::string text() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

std::string human_bytes(std::uint64_t bytes);  // "1.5 GiB"
std::string human_us(std::int64_t us);         // "870 us", "1.25 ms", "3.4 s"
std::string human_age(std::int64_t us);        // "12s", "3m", "5h", "2d"

enum class Colour { none, red, green, yellow, dim };
// The text itself where `fd`, on which it will be printed, is no terminal, or NO_COLOR is set.
std::string coloured(Colour colour, const std::string& text, int fd = 1);

}  // namespace godwit::cli
