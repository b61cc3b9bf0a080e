package dataplane

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pacer
		begun := time.Now()
		for range 3 * maxRecords {
			p.wait()
		}
		if took := time.Since(begun); took < 2900*time.Millisecond || took > 3100*time.Millisecond {
			t.Errorf("three seconds' records took %s", took)
		}
		time.Sleep(time.Hour)
		begun = time.Now()
		for range maxRecords / 200 {
			p.wait()
		}
		if took := time.Since(begun); took > 10*time.Millisecond {
			t.Errorf("a few records after a quiet hour took %s", took)
		}
	})
}
