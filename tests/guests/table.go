package guests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Save writes rows into a file of them, in place of those of the same clients and
// families; the others stay.
func Save(file string, rows []Row) error {
	all, err := Load(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, r := range rows {
		at := slices.IndexFunc(all, func(x Row) bool { return x.Client == r.Client && x.Family == r.Family })
		if at < 0 {
			all = append(all, r)
		} else {
			all[at] = r
		}
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// Load reads what Save wrote.
func Load(file string) (rows []Row, err error) {
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &rows)
	}
	return rows, err
}

// Markdown prints the table as the docs have it.
func Markdown(rows []Row) string {
	var b strings.Builder
	b.WriteString("| client | family | follows | rung | p50, ms | p99, ms | swaps | old address left |\n|---|---|---|---|---|---|---|---|\n")
	word := map[bool]string{true: "yes", false: "no"}
	for _, r := range rows {
		rung, p50, p99 := r.Rung, fmt.Sprint(r.P50), fmt.Sprint(r.P99)
		if !r.Follows {
			rung, p50, p99 = "", "", ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %d | %s |\n", r.Client, r.Family, word[r.Follows], rung, p50, p99, r.Runs, word[r.OldAddressLeft])
	}
	return b.String()
}
