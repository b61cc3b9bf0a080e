package imds

import (
	"net"
	"net/netip"
)

// A listener lets in callers it can name, and of each port no more than
// maxConns connections at once.
type listener struct {
	net.Listener
	s *Server
}

// Accept returns the next connection that may stay; the others are closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who, ok := l.s.cfg.Identify(remote(c.RemoteAddr()))
		if !ok {
			l.s.cfg.Refused(0, "unknown caller")
			_ = c.Close()
			continue
		}
		own := &conn{Conn: c, who: who, s: l.s}
		if !l.s.enter(own) {
			l.s.cfg.Refused(who.Port, "too many connections")
			_ = c.Close()
			continue
		}
		return own, nil
	}
}

// A conn gives its place back when it is closed.
type conn struct {
	net.Conn
	who Caller
	s   *Server
}

// Close closes the connection.
func (c *conn) Close() error {
	c.s.leave(c)
	return c.Conn.Close()
}

func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.port(c.who.Port)
	if len(p.conns) >= maxConns {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.ports[c.who.Port]; ok {
		delete(p.conns, c)
	}
}

// cut takes the connections of the callers that are over. The caller holds the
// server's lock, and resets what it gets without it.
func (p *portState) cut(over func(Caller) bool) []*conn {
	var old []*conn
	for c := range p.conns {
		if over(c.who) {
			old = append(old, c)
			delete(p.conns, c)
		}
	}
	return old
}

// reset ends connections at once: the datapath lets no more of their packets
// through, so a FIN would be sent again for minutes.
func reset(conns []*conn) {
	for _, c := range conns {
		if t, ok := c.Conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Conn.Close()
	}
}

func remote(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}
