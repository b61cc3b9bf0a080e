package server

import (
	"replug/directory/directorypb"
	"replug/directory/vnet"
	"replug/directory/wire"
)

// Tracks are the newest statuses of a port. What is staged and what is in force
// are compared apart: a swap that is given up after `prepared` leaves its higher
// epoch behind, and the port goes on reporting the one in force.
type tracks struct{ staged, inForce vnet.Status }

func (t *tracks) of(p vnet.StatusPhase) *vnet.Status {
	if p == vnet.StatusPrepared || p == vnet.StatusRefused {
		return &t.staged
	}
	return &t.inForce
}

// hear takes one message of a host over.
func (s *Server) hear(st *stream, m *directorypb.FromHost) {
	for _, e := range m.GetDigest().GetPorts() {
		v, err := wire.ToDigest(e, st.host.Name, st.session)
		s.judge(st, v, err)
	}
	if a := m.GetAnswer(); a != nil {
		st.answered(a)
	}
	if w := m.GetHealth(); w != nil {
		s.hearHealth(st, w)
	}
	if w := m.GetStatus(); w != nil {
		v, err := wire.ToStatus(w, st.host.Name, st.session)
		s.judge(st, v, err)
		st.mu.Lock()
		st.acked, st.ack = max(st.acked, w.Seq), true
		st.wake()
		st.mu.Unlock()
	}
}

// hearHealth passes on what a host found out about backends of its own. Nothing
// is acknowledged: a host repeats all of it on its next stream.
func (s *Server) hearHealth(st *stream, w *directorypb.Health) {
	all, err := wire.ToHealth(w)
	if err != nil {
		s.metrics.dropped.WithLabelValues("unreadable").Inc()
		s.log.Warn("health ignored", "host", st.host.Name, "error", err)
		return
	}
	st.hearing.Lock()
	defer st.hearing.Unlock()
	for _, h := range all {
		switch {
		case !s.owns(st.host.Name, h.Member):
			s.metrics.dropped.WithLabelValues("foreign").Inc()
		case !st.deaf:
			s.control.Health(st.host.Name, h)
		}
	}
}

// judge passes a status to control, unless nobody may hear it: it is
// acknowledged all the same, since repeating it would change nothing.
func (s *Server) judge(st *stream, v vnet.Status, err error) {
	why := ""
	switch {
	case err != nil:
		why = "unreadable"
		s.log.Warn("status ignored", "host", st.host.Name, "error", err)
	case !s.owns(st.host.Name, v.Port):
		why = "foreign"
		s.log.Warn("status ignored: the host has no such port", "host", st.host.Name, "port", v.Port)
	case !s.newest(v):
		why = "late"
	}
	if why != "" {
		s.metrics.dropped.WithLabelValues(why).Inc()
		return
	}
	st.hearing.Lock()
	defer st.hearing.Unlock()
	if !st.deaf {
		s.control.Status(v)
	}
}

func (s *Server) owns(host, port string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view.intents[host][port] != nil
}

// newest reports whether v is newer than what was heard of the port, and
// remembers it then.
func (s *Server) newest(v vnet.Status) bool {
	s.heard.Lock()
	defer s.heard.Unlock()
	t := s.last[v.Port]
	if t == nil {
		t = new(tracks)
		s.last[v.Port] = t
	}
	old := t.of(v.Phase)
	if old.Port != "" && !v.Newer(old) {
		return false
	}
	*old = v
	return true
}

// forget drops what was heard of a port that is no more.
func (s *Server) forget(port string) {
	s.heard.Lock()
	defer s.heard.Unlock()
	delete(s.last, port)
}
