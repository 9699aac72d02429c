package nixops

// Sim is a simulated machine.
type Sim struct{ Host }

// NewSim opens or makes the simulated machine kept in dir, whose cache is cacheDir.
func NewSim(dir, cacheDir string) (*Sim, error) { panic("not yet") }

// WriteSimClosure puts a closure into a simulated cache.
func WriteSimClosure(cacheDir, base string, c SimClosure) error { panic("not yet") }

// OnDeadline replaces the execution of a deadline's command by a call.
func (s *Sim) OnDeadline(f func(Deadline)) { panic("not yet") }

// OnSwitched is called after each `test` or `switch` has taken effect.
func (s *Sim) OnSwitched(f func(closure string)) { panic("not yet") }

// Online says whether the running closure lets the machine reach the network.
func (s *Sim) Online() bool { panic("not yet") }

// AgentStarts says whether the running closure's agent can run.
func (s *Sim) AgentStarts() bool { panic("not yet") }

// PowerCycle cuts the power and boots the boot default.
func (s *Sim) PowerCycle() error { panic("not yet") }
