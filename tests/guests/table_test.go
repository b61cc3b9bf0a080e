package guests

import (
	"path/filepath"
	"slices"
	"testing"
)

// The file keeps the table's order, whatever order its lines were made in, and one row of
// each: the newest. A guest that did not follow has no figures.
func TestSave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "guests.json")
	dual, six := Families[3].Name, Families[1].Name
	rows := []Row{
		{Client: "dhcpcd", Family: dual, Follows: true, Rung: "bounce 20ms", P50: 10079.4, P99: 12196.7, Runs: 10, Late: 1},
		{Client: "dhclient", Family: six, Runs: 1},
		{Client: "replug-guest", Family: six, Follows: true, Rung: "bounce 20ms", P50: 999, P99: 999, Runs: 3},
		{Client: "replug-guest", Family: six, Follows: true, Rung: "bounce 20ms", P50: 133.2, P99: 181.4, Runs: 10, OldAddressLeft: true},
	}
	for _, r := range rows {
		if err := Save(file, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(file)
	if want := []Row{rows[3], rows[1], rows[0]}; err != nil || !slices.Equal(got, want) {
		t.Errorf("kept %+v, %v, want %+v", got, err, want)
	}
	const want = `| client | family | follows | rung | p50, ms | p99, ms | swaps | old address left |
|---|---|---|---|---|---|---|---|
| replug-guest | IPv6, DHCPv6 | yes | bounce 20ms | 133.2 | 181.4 | 10 | yes |
| dhclient | IPv6, DHCPv6 | no |  |  |  | 1 |  |
| dhcpcd | dual stack | yes, 1 of them later than 25 s | bounce 20ms | 10079.4 | 12196.7 | 10 | no |
`
	if got := Markdown(got); got != want {
		t.Errorf("printed as\n%s\nwant\n%s", got, want)
	}
}
