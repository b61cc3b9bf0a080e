package service

import (
	"cmp"
	"fmt"
	"time"

	"replug/directory/vnet"
)

// DefaultWeight is the weight of a backend of which nothing is said.
const DefaultWeight = 100

// Defaults and bounds of a check.
const (
	defaultInterval = 5 * time.Second
	defaultTimeout  = 2 * time.Second
	defaultRise     = 2
	defaultFall     = 3
	minInterval     = 100 * time.Millisecond
	maxInterval     = 5 * time.Minute
	maxStreak       = 100
)

// complete fills in what was left open and checks the rest.
func complete(s *vnet.Service) error {
	switch {
	case !s.VIP.IsValid():
		return fmt.Errorf("%w address: none is given; say one of the network that no port has", ErrInvalid)
	case s.Port == 0:
		return fmt.Errorf("%w port 0: 1 to 65535", ErrInvalid)
	case !s.Protocol.HasPorts():
		return fmt.Errorf("%w protocol %s: tcp, udp or sctp", ErrInvalid, s.Protocol)
	case len(s.Backends) > MaxBackends:
		return fmt.Errorf("backends: %w of %d", ErrExhausted, MaxBackends)
	}
	if err := completeCheck(s); err != nil {
		return err
	}
	seen := make(map[string]bool, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		if b.Port == 0 {
			b.Port = s.Port
		}
		switch {
		case seen[b.Member]:
			return fmt.Errorf("%w backend %s: given twice", ErrInvalid, b.Member)
		case b.Weight > vnet.MaxWeight:
			return fmt.Errorf("%w backend %s: weight %d, at most %d", ErrInvalid, b.Member, b.Weight, vnet.MaxWeight)
		case s.Protocol == vnet.SCTP && b.Port != s.Port:
			return fmt.Errorf("%w backend %s: it listens on %d, the service on %d; the checksum of SCTP covers the port, so it can't be changed on the way",
				ErrInvalid, b.Member, b.Port, s.Port)
		case b.CA.Is4() != s.VIP.Is4():
			return fmt.Errorf("%w backend %s: it is reached at %s, which is not of the family of %s", ErrInvalid, b.Member, b.CA, s.VIP)
		}
		seen[b.Member] = true
	}
	return nil
}

func completeCheck(s *vnet.Service) error {
	if s.Check == nil {
		return nil
	}
	c := *s.Check // the caller's stays as it is
	s.Check = &c
	c.Interval = cmp.Or(c.Interval, defaultInterval)
	c.Timeout = cmp.Or(c.Timeout, min(defaultTimeout, c.Interval))
	c.Rise, c.Fall = cmp.Or(c.Rise, defaultRise), cmp.Or(c.Fall, defaultFall)
	switch {
	case s.Protocol != vnet.TCP && c.Port == 0:
		return fmt.Errorf("%w check: it is a TCP handshake, and the service is %s; say which TCP port of the backends tells whether they live", ErrInvalid, s.Protocol)
	case c.Interval < minInterval || c.Interval > maxInterval:
		return fmt.Errorf("%w check every %s: %s to %s", ErrInvalid, c.Interval, minInterval, maxInterval)
	case c.Timeout < 0 || c.Timeout > c.Interval:
		return fmt.Errorf("%w check with a timeout of %s: positive, not above the interval of %s; say a shorter timeout, or a longer interval", ErrInvalid, c.Timeout, c.Interval)
	case c.Rise < 0 || c.Rise > maxStreak || c.Fall < 0 || c.Fall > maxStreak:
		return fmt.Errorf("%w check: rise %d, fall %d: 1 to %d in a row", ErrInvalid, c.Rise, c.Fall, maxStreak)
	}
	return nil
}
