package bpf

import "testing"

// An operator at night reads these: no reason goes without.
func TestDropText(t *testing.T) {
	for r := datapathDropReasonDROP_NONE + 1; r < datapathDropReasonDROP_MAX; r++ {
		if name := DropReason(r).String(); DropText(name) == "" {
			t.Errorf("reason.h doesn't say what %s means", name)
		}
	}
	if got := DropText("no_mapping"); got != "no PA is known for (VNI, destination CA)" {
		t.Errorf("no_mapping: %q", got)
	}
	if got := DropText("max"); got != "" && got != "number of reasons; not a reason" {
		t.Errorf("max: %q", got)
	}
}
