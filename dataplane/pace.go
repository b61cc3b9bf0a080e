package dataplane

import "time"

// A pacer bounds what reading a ring costs the host: a VM that floods must not buy
// the agent's CPU with it. What comes faster than the reader takes it finds no room
// in the ring, which is cheap, and is counted there.
type pacer struct {
	began time.Time // of the records counted in n
	n     int
}

// Records a second that one reader takes; a ring holds about 3,000 more.
const maxRecords = 20000

// wait is called for each record.
func (p *pacer) wait() {
	const window = 10 * time.Millisecond
	const most = maxRecords / int(time.Second/window)
	if p.n++; p.n < most {
		return
	}
	time.Sleep(window - time.Since(p.began))
	p.began, p.n = time.Now(), 0
}
