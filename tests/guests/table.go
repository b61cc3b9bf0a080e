package guests

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
)

// saving is held while a file of rows is written.
var saving sync.Mutex

// Save writes a row into a file of them, in place of that of the same client and
// family; the others stay. They are in the order of the table.
func Save(file string, row Row) error {
	saving.Lock()
	defer saving.Unlock()
	all, err := Load(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all = slices.DeleteFunc(all, func(r Row) bool { return r.Client == row.Client && r.Family == row.Family })
	all = append(all, row)
	order := func(r Row) int { return slices.IndexFunc(Families, func(f Family) bool { return f.Name == r.Family }) }
	slices.SortStableFunc(all, func(a, b Row) int { return cmp.Or(order(a)-order(b), place(a)-place(b)) })
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// place is where a row stands among those of its family.
func place(r Row) int {
	for _, f := range Families {
		if f.Name == r.Family {
			return slices.IndexFunc(Clients(f), func(c Client) bool { return c.String() == r.Client })
		}
	}
	return -1
}

// Judge says how a row's figures compare with those that it is to reach, in ms, if
// there are any. They are never tested: a busy machine would fail them.
func (r Row) Judge() string {
	goal := map[string]struct{ p50, p99 float64 }{"replug-guest": {500, 1500}, "systemd-networkd": {p50: 700}, claimed: {p50: 3000}}[r.Client]
	if goal.p50 == 0 || !r.Follows {
		return ""
	}
	word, said := "reached", sprint("%s, %s: p50 %g ms of %g", r.Client, r.Family, r.P50, goal.p50)
	if goal.p99 > 0 {
		said += sprint(", p99 %g ms of %g", r.P99, goal.p99)
	}
	if r.P50 > goal.p50 || goal.p99 > 0 && r.P99 > goal.p99 {
		word = "MISSED"
	}
	return said + ": " + word
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
		follows, rung, p50, p99, left := word[r.Follows], r.Rung, fmt.Sprint(r.P50), fmt.Sprint(r.P99), word[r.OldAddressLeft]
		if !r.Follows { // it is back in its old network
			rung, p50, p99, left = "", "", "", ""
		}
		if r.Late > 0 {
			follows += fmt.Sprintf(", %d of them later than 25 s", r.Late)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %d | %s |\n", r.Client, r.Family, follows, rung, p50, p99, r.Runs, left)
	}
	return b.String()
}
