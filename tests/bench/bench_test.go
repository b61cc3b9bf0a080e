package bench

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// A part that is measured alone takes nothing from what the others have said.
func TestWriteKeepsOtherParts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out", "bench.json")
	for _, run := range [][]Figure{{{ID: "rr", Ours: 1}, {ID: "pps", Ours: 2}}, {{ID: "pps", Ours: 3}, {ID: "dhcp", Ours: 4}}} {
		if err := write(file, run); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []Figure
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []Figure{{ID: "rr", Ours: 1}, {ID: "pps", Ours: 3}, {ID: "dhcp", Ours: 4}} {
		if i >= len(got) || got[i].ID != want.ID || got[i].Ours != want.Ours {
			t.Fatalf("got %+v", got)
		}
	}
	if err := os.WriteFile(file, []byte("not JSON"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write(file, nil); err == nil {
		t.Error("a file that is no bench's was written over")
	}
}
