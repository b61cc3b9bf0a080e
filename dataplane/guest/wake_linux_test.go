package guest

import (
	"testing"
	"time"
)

// A clock that stood still is set by the hardware's, and never back.
func TestLate(t *testing.T) {
	now := time.Unix(1795685780, 750e6)
	for name, c := range map[string]struct {
		hardware string
		late     bool
		wrong    bool
	}{
		"an hour later":            {"1795689380\n", true, false},
		"the hardware tells less":  {"1795685781\n", false, false},
		"just over a second later": {"1795685782\n", true, false},
		"the same second":          {"1795685780\n", false, false},
		"ahead of the hardware":    {"1795682180\n", false, false},
		"no number":                {"tomorrow", false, true},
	} {
		at, late, err := lateBy(now, c.hardware)
		if late != c.late || (err != nil) != c.wrong || late && !at.After(now) {
			t.Errorf("%s: %v, late %t, %v", name, at, late, err)
		}
	}
}
