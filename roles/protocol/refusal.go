package protocol

// Refusal is the JSON body of a refusal; v1 sends error and reason at most.
type Refusal struct {
	Error  string `json:"error" shape:"R"`
	Reason string `json:"reason,omitzero" shape:"O"`
	Code   string `json:"code,omitzero" shape:"O"`
	Hint   string `json:"hint,omitzero" shape:"O"`
}
